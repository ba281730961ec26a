"""Products with weights of int8, which torch's kernels for the host read whole vectors of.

For bfloat16 they read beyond the last of a row that is no multiple of such vectors: results are
wrong, or the process ends. Only kernels without vectors do not, as in export actions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import fx

__all__ = ["SCRIPTED", "fill_vectors"]

_PRODUCT = torch.ops.aten._weight_int8pack_mm.default

_LONGEST = 32
"""How many numbers the longest of the vectors has."""


def packed_product(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Returns `torch._weight_int8pack_mm(x, weight, scales)`, with zeros where vectors end."""
    if x.dim() == 2 and weight.dim() == 2 and x.size(1) == weight.size(1):
        missing = -x.size(1) % 32
        x = torch.constant_pad_nd(x, [0, missing], 0)
        weight = torch.constant_pad_nd(weight, [0, missing], 0)
    return torch._weight_int8pack_mm(x, weight, scales)


SCRIPTED = (packed_product,)
"""What `fill_vectors` puts into graphs."""


def fill_vectors(module: fx.GraphModule, weights: Mapping[int, torch.Tensor]) -> fx.GraphModule:
    """Returns a graph, with its subgraphs, in which no such product reads beyond its operands.

    Args:
      module: what takes and gives tensors. It is not changed.
      weights: by which of its inputs they are.

    Returns:
      A graph with the same inputs and outputs; `module` itself if all products in it are of such
      weights as consist of whole vectors.
    """
    if not _products(module, weights):
        return module
    changed = copy.deepcopy(module)
    for node in _products(changed, weights):
        node.target = packed_product
    for graph in _graphs(changed):
        graph.recompile()
    return changed


def _products(module: fx.GraphModule, weights: Mapping[int, torch.Tensor]) -> list[fx.Node]:
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    whole = {
        inputs[place]
        for place, weight in weights.items()
        if weight.dim() == 2 and weight.size(1) % _LONGEST == 0
    }
    return [
        node
        for graph in _graphs(module)
        for node in graph.graph.nodes
        if node.target is _PRODUCT and node.args[1] not in whole
    ]


def _graphs(module: fx.GraphModule) -> list[fx.GraphModule]:
    return [part for part in module.modules() if isinstance(part, fx.GraphModule)]
