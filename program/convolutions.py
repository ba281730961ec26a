"""Convolutions as oneDNN computes them fastest, in graphs that run on the host.

Each convolution with weights takes over the batch normalisation that follows it, and its weights
are brought once into the order that the processor wants. What it gives lies channels last in
memory. That is invisible to some operators, and to convolutions a gain; all others get their
tensors as the graph says.

Activations and additions stay operators of their own: oneDNN's joined ones make zeros of
not-a-number, and read beyond the end of what ought to be broadcast.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

__all__ = ["prepare_convolutions"]

_aten = torch.ops.aten
_CONVOLUTION = torch.ops.mkldnn._convolution_pointwise.default

# They give the same elements however their inputs lie in memory, and give no views of them.
_LAYOUT_AGNOSTIC = frozenset(
    {
        _CONVOLUTION,
        _aten.adaptive_avg_pool2d.default,
        _aten.add.Tensor,
        _aten.avg_pool2d.default,
        _aten.cat.default,
        _aten.clamp.default,
        _aten.div.Tensor,
        _aten.gelu.default,
        _aten.hardswish.default,
        _aten.hardtanh.default,
        _aten.max_pool2d.default,
        _aten.mul.Tensor,
        _aten.relu.default,
        _aten.sigmoid.default,
        _aten.silu.default,
        _aten.sub.Tensor,
    }
)


def prepare_convolutions(
    graph: fx.Graph, weights: Mapping[int, torch.Tensor]
) -> tuple[fx.Graph, dict[int, torch.Tensor]]:
    """Returns a graph that gives the same to within rounding, and the weights that it takes.

    Args:
      graph: what takes and gives tensors on the host. It is not changed.
      weights: by which of its inputs they are. Running the graph does not change them.

    Returns:
      A graph whose inputs are those of `graph` with more weights after them; `graph` itself if it
      has no such convolution.
    """
    changed = copy.deepcopy(graph)
    preparation = _Preparation(changed, weights)
    if not torch._C._has_mkldnn or any(map(_is_mutable, graph.nodes)) or not preparation.prepare():
        return graph, dict(weights)
    _restore_layouts(changed)
    changed.lint()
    return changed, preparation.weights


class _Preparation:
    def __init__(self, graph: fx.Graph, weights: Mapping[int, torch.Tensor]) -> None:
        self.weights = dict(weights)
        self._graph = graph
        self._inputs: list[fx.Node] = [node for node in graph.nodes if node.op == "placeholder"]
        self._values: dict[Any, torch.Tensor] = {
            self._inputs[place]: weight for place, weight in weights.items()
        }

    def prepare(self) -> bool:
        """Returns whether there was a convolution."""
        found = [node for node in self._graph.nodes if self._is_convolution(node)]
        for node in found:
            self._replace(node)
        return bool(found)

    def _is_convolution(self, node: fx.Node) -> bool:
        if node.target is not _aten.conv2d.default or node.kwargs:
            return False
        weight, bias = node.args[1], _argument(node, 2, None)
        return (
            weight in self._values
            and self._values[weight].dtype == torch.float32
            and (bias is None or bias in self._values)
            and node.args[0] not in self._values
        )

    def _replace(self, node: fx.Node) -> None:
        weight, bias = self._values[node.args[1]], self._values.get(_argument(node, 2, None))
        last = node
        normalisation = self._normalisation(node)
        if normalisation is not None:
            last = normalisation
            weight, bias = self._normalised(weight, bias, normalisation)
        shape: list[Any] = [_pair(_argument(node, *place)) for place in ((4, 0), (3, 1), (5, 1))]
        shape.append(_argument(node, 6, 1))
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *shape)
        constants = [self._constant(packed), None if bias is None else self._constant(bias)]
        with self._graph.inserting_before(last):
            call = self._graph.call_function(
                _CONVOLUTION, (node.args[0], *constants, *shape, "none", [], "")
            )
        last.replace_all_uses_with(call)
        self._graph.erase_node(last)
        if last is not node:
            self._graph.erase_node(node)

    def _normalisation(self, node: fx.Node) -> fx.Node | None:
        """Returns the batch normalisation of a convolution's result, if nothing else uses that."""
        user = next(iter(node.users), None)
        if len(node.users) != 1 or user is None or user.target is not _aten.batch_norm.default:
            return None
        source, *statistics = user.args[:5]
        known = all(item is None or item in self._values for item in statistics)
        in_training = user.args[5]
        if source is not node or not known or None in statistics[2:] or in_training or user.kwargs:
            return None
        return user

    def _normalised(
        self, weight: torch.Tensor, bias: torch.Tensor | None, normalisation: fx.Node
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the weight and bias of a convolution with a batch normalisation behind it."""
        scale, shift, mean, variance = (
            None if item is None else self._values[item].double()
            for item in normalisation.args[1:5]
        )
        epsilon: Any = normalisation.args[7]
        assert mean is not None
        assert variance is not None
        factor = (variance + epsilon).rsqrt()
        if scale is not None:
            factor = factor * scale
        offset = -mean * factor if bias is None else (bias.double() - mean) * factor
        if shift is not None:
            offset = offset + shift
        scaled = weight.double() * factor.reshape(-1, 1, 1, 1)
        return scaled.to(weight.dtype), offset.to(weight.dtype)

    def _constant(self, weight: torch.Tensor) -> fx.Node:
        place = len(self._inputs)
        with self._graph.inserting_after(self._inputs[-1]):
            self._inputs.append(self._graph.placeholder(f"prepared_{place}"))
        self.weights[place] = weight
        return self._inputs[-1]


def _restore_layouts(graph: fx.Graph) -> None:
    """Has every operator that may notice get its tensors contiguous."""
    strange: set[fx.Node] = set()
    restored: dict[fx.Node, fx.Node] = {}

    def restore(node: fx.Node) -> fx.Node:
        if node not in strange:
            return node
        if node not in restored:
            with graph.inserting_after(node):
                restored[node] = graph.call_function(_aten.contiguous.default, (node,))
        return restored[node]

    for node in list(graph.nodes):
        if node.target in _LAYOUT_AGNOSTIC:
            if node.target is _CONVOLUTION or strange & set(node.all_input_nodes):
                strange.add(node)
        elif strange & set(node.all_input_nodes):
            node.args = fx.node.map_arg(node.args, restore)
            node.kwargs = fx.node.map_arg(node.kwargs, restore)


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _argument(node: fx.Node, place: int, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else default


def _pair(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value, value]
    return list(value) * (2 // len(value))
