"""Matrix products that are scaled as they are computed, in graphs that run on the host.

Attention divides its scores by a number, and on the host that is another pass over what is often
the largest tensor of the model. BLAS takes a factor along at no cost.
"""

from __future__ import annotations

import copy

import torch
from torch import fx

__all__ = ["matmul_div", "matmul_mul", "scale_matmuls"]

_aten = torch.ops.aten
_MATMULS = (_aten.matmul.default, _aten.bmm.default)


def matmul_mul(a: torch.Tensor, b: torch.Tensor, factor: float) -> torch.Tensor:
    """Returns `torch.mul(torch.matmul(a, b), factor)` to within rounding.

    Like `matmul_div` it is written in TorchScript, since it depends on the sizes and dtypes.
    """
    if _is_batched(a, b):
        return _scaled(a, b, factor)
    return torch.mul(torch.matmul(a, b), factor)


def matmul_div(a: torch.Tensor, b: torch.Tensor, divisor: float) -> torch.Tensor:
    """Returns `torch.div(torch.matmul(a, b), divisor)` to within rounding."""
    if _is_batched(a, b):
        return _scaled(a, b, 1 / divisor)
    return torch.div(torch.matmul(a, b), divisor)


def _is_batched(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Returns whether two tensors are as many matrices of float32, none of which is repeated."""
    return (
        a.dtype == torch.float32
        and a.dim() >= 3
        and a.size()[:-2] == b.size()[:-2]
        and a.numel() > 0
        and b.numel() > 0
    )


def _scaled(a: torch.Tensor, b: torch.Tensor, factor: float) -> torch.Tensor:
    rows, columns = a.size(-2), b.size(-1)
    matrices = a.reshape([-1, rows, a.size(-1)])
    # With a `beta` of zero nobody reads what is in it.
    unused = torch.empty([matrices.size(0), rows, columns])
    others = b.reshape([-1, b.size(-2), columns])
    result = torch.baddbmm(unused, matrices, others, beta=0, alpha=factor)
    shape = list(a.size()[:-1])
    shape.append(columns)
    return result.view(shape)


def scale_matmuls(graph: fx.Graph) -> fx.Graph:
    """Returns a graph that gives the same to within rounding, with this module's products in it.

    Args:
      graph: what takes and gives tensors on the host. It is not changed.

    Returns:
      A graph with the same inputs; `graph` itself if no product in it is multiplied or divided by a
      number and used for nothing else.
    """
    changed = copy.deepcopy(graph)
    found = [node for node in changed.nodes if _is_scaling(node)]
    for node in found:
        matmul, number = node.args
        target = matmul_mul if node.target is _aten.mul.Tensor else matmul_div
        # Before what follows the product, which may write to its operands.
        with changed.inserting_before(matmul):
            product = changed.call_function(target, (*matmul.args, float(number)))
        node.replace_all_uses_with(product)
        changed.erase_node(node)
        changed.erase_node(matmul)
    return changed if found else graph


def _is_scaling(node: fx.Node) -> bool:
    if node.target not in (_aten.mul.Tensor, _aten.div.Tensor) or node.kwargs:
        return False
    matmul, number = node.args
    if not isinstance(matmul, fx.Node) or matmul.target not in _MATMULS or matmul.kwargs:
        return False
    # An integer leaves a product of integers one of integers, and would not as a float.
    if not isinstance(number, float) and node.target is _aten.mul.Tensor:
        return False
    return isinstance(number, int | float) and _is_usual(number) and len(matmul.users) == 1


def _is_usual(number: float) -> bool:
    """Returns whether float32 has both a number and its inverse, with all of their digits."""
    return 2.0**-126 <= abs(number) <= 2.0**126
