"""Linear layers as oneDNN computes them, in graphs that run on the host.

Torch leaves matrix products of float32 to MKL, which uses AVX-512 on the processors of one maker.
OneDNN uses it on all: on others, products of 256 rows and columns take less than half of the time.
It takes the weights as they are, so that nothing is kept twice.

OneDNN prepares itself for each number of rows, which takes half a millisecond and half a megabyte,
and remembers 1,024 products. So rows are added, to come to one of few numbers, and taken away from
the result.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

__all__ = [
    "ONEDNN_LAYERS",
    "TORCH_LAYERS",
    "is_large",
    "join_linears",
    "linear_chain",
    "onednn_is_faster",
    "pad_rows",
    "restore_rows",
]

_aten = torch.ops.aten

# A call of oneDNN's takes 10 us more than one of MKL's. That many multiplications make up for it.
_LEAST_MULTIPLICATIONS = 2**21

# How many times faster it must be. Where MKL uses AVX-512 as well, both are within a tenth.
_LEAST_GAIN = 1.3


def linear_chain(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    activations: Sequence[str],
    fewest: int,
) -> torch.Tensor:
    """Returns what linear layers give one after the other, each with an activation behind it.

    Torch's interpreter decides by the number of rows who computes it, so that it runs what
    `TORCH_LAYERS` and `ONEDNN_LAYERS` have instead.

    Args:
      x: float32, (..., columns), with at least one column.
      weights: of each layer, float32, (outputs, inputs).
      biases: of each layer, float32, (outputs,), or None.
      activations: of each layer, a key of `TORCH_LAYERS`.
      fewest: from how many elements of `x` on oneDNN is faster.
    """
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        x = TORCH_LAYERS[activation](x, weight, bias)
    return x


# What follows is TorchScript, which the interpreter takes in.


def is_large(x: torch.Tensor, fewest: int) -> bool:
    """Returns whether a tensor has as many elements."""
    return x.numel() >= fewest


def pad_rows(x: torch.Tensor) -> torch.Tensor:
    """Returns (..., columns) as (rows, columns), with zeros for a quarter of them or seven more.

    Between a number of rows and twice as many there are four that come out of it.
    """
    columns = x.size(-1)
    rows = x.numel() // columns
    step = 8
    while step * 8 <= rows:
        step *= 2
    return torch.constant_pad_nd(x.reshape([-1, columns]), [0, 0, 0, -rows % step], 0)


def restore_rows(result: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns the rows that `pad_rows` had from a tensor, with as many dimensions as that."""
    rows = x.numel() // x.size(-1)
    shape = list(x.shape[:-1])
    shape.append(result.size(1))
    return result.narrow(0, 0, rows).reshape(shape)


def _torch_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch._C._nn.linear(x, weight, bias)


def _torch_linear_relu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return torch.relu(torch._C._nn.linear(x, weight, bias))


def _torch_linear_gelu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return torch._C._nn.gelu(torch._C._nn.linear(x, weight, bias))


def _onednn_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _onednn_linear_relu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    # OneDNN's own would make zeros of not-a-number.
    return torch.relu_(torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


def _onednn_linear_gelu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
    return result


Layer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

# A linear layer with an activation behind it, by the activation.
TORCH_LAYERS: dict[str, Layer] = {
    "none": _torch_linear,
    "relu": _torch_linear_relu,
    "gelu": _torch_linear_gelu,
}
# The same for (rows, columns).
ONEDNN_LAYERS: dict[str, Layer] = {
    "none": _onednn_linear,
    "relu": _onednn_linear_relu,
    "gelu": _onednn_linear_gelu,
}


@functools.cache
def onednn_is_faster() -> bool:
    """Returns whether oneDNN multiplies matrices of float32 faster here than torch does itself.

    It tries both the first time, which takes some milliseconds.
    """
    if not torch._C._has_mkldnn:
        return False
    x, weight, bias = torch.ones(256, 256), torch.ones(256, 256), torch.ones(256)
    ways: list[Callable[[], torch.Tensor]] = [
        lambda: torch.nn.functional.linear(x, weight, bias),
        lambda: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""),
    ]
    usual, onednn = (min(_seconds(way) for _ in range(8)) for way in ways)
    return usual > onednn * _LEAST_GAIN


def _seconds(call: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def join_linears(graph: fx.Graph, weights: Mapping[int, torch.Tensor]) -> fx.Graph:
    """Returns a graph that gives the same to within rounding, with `linear_chain` in it.

    Args:
      graph: what takes and gives tensors on the host. It is not changed.
      weights: by which of its inputs they are. Running the graph does not change them.

    Returns:
      A graph with the same inputs; `graph` itself if it has no linear layer with such weights.
    """
    changed = copy.deepcopy(graph)
    inputs = [node for node in changed.nodes if node.op == "placeholder"]
    constants = {inputs[place]: weight for place, weight in weights.items()}
    joined: set[fx.Node] = set()
    for node in list(changed.nodes):
        if node not in joined and _is_linear(node, constants):
            joined.update(_join(node, constants))
    return changed if joined else graph


def _join(first: fx.Node, constants: Mapping[fx.Node, torch.Tensor]) -> list[fx.Node]:
    """Replaces a linear layer, and those behind it that alone use its results."""
    linears: list[fx.Node] = []
    activations: list[str] = []
    replaced: list[fx.Node] = []
    node: fx.Node | None = first
    while node is not None and _is_linear(node, constants):
        linears.append(node)
        replaced.append(node)
        user = _only_user(node)
        activations.append(_activation(user))
        if user is not None and activations[-1] != "none":
            replaced.append(user)
            user = _only_user(user)
        node = user
    weights: list[Any] = [linear.args[1] for linear in linears]
    biases = [_bias(linear) for linear in linears]
    multiplications = sum(constants[weight].numel() for weight in weights)
    columns = constants[weights[0]].size(1)
    fewest_rows = max(8, _LEAST_MULTIPLICATIONS * len(weights) // multiplications)
    graph = first.graph
    # Before what follows the first layer, which may write to what it takes.
    with graph.inserting_before(first):
        call = graph.call_function(
            linear_chain, (first.args[0], weights, biases, activations, fewest_rows * columns)
        )
    replaced[-1].replace_all_uses_with(call)
    for node in reversed(replaced):
        graph.erase_node(node)
    return replaced


def _is_linear(node: fx.Node, constants: Mapping[fx.Node, torch.Tensor]) -> bool:
    if node.target is not _aten.linear.default or node.kwargs:
        return False
    weights: Any = node.args[1]
    weight, bias = constants.get(weights), _bias(node)
    return (
        weight is not None
        and weight.dtype == torch.float32
        and weight.dim() == 2
        and weight.is_contiguous()
        and weight.numel() > 0
        # Torch broadcasts others; oneDNN takes what it finds, or nothing.
        and (bias is None or (bias in constants and constants[bias].shape == weight.shape[:1]))
    )


def _bias(linear: fx.Node) -> Any:
    return linear.args[2] if len(linear.args) > 2 else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(node: fx.Node | None) -> str:
    if node is not None and node.target is _aten.relu.default:
        return "relu"
    if node is not None and node.target is _aten.gelu.default:
        return "gelu" if node.kwargs.get("approximate", "none") == "none" else "none"
    return "none"
