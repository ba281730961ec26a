"""Indices that depend on a call's values, checked where one out of range would end the device.

On the host torch looks at every index, and raises an error. CUDA has the device assert it: one
token outside the vocabulary, and nothing runs on the device any more until the process ends.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx

from slipway.program.vmap import nesting_change

__all__ = ["SCRIPTED", "check_indices"]

_aten = torch.ops.aten

# The first argument is what an operator looks into. Of these, the second is an index of rows;
_OF_ROWS = {
    _aten.embedding.default,
    _aten.embedding_bag.default,
    _aten.embedding_bag.padding_idx,
}
# of these it is a dimension, and the third is the index;
_ALONG_DIMENSION = {
    _aten.gather.default,
    _aten.index_add.default,
    _aten.index_add_.default,
    _aten.index_copy.default,
    _aten.index_copy_.default,
    _aten.index_fill.int_Scalar,
    _aten.index_fill_.int_Scalar,
    _aten.index_select.default,
    _aten.scatter.reduce,
    _aten.scatter.src,
    _aten.scatter.value,
    _aten.scatter.value_reduce,
    _aten.scatter_.reduce,
    _aten.scatter_.src,
    _aten.scatter_.value,
    _aten.scatter_.value_reduce,
    _aten.scatter_add.default,
    _aten.scatter_add_.default,
    _aten.scatter_reduce.two,
    _aten.scatter_reduce_.two,
}
# of these it is a list, of an index or none for each of the first dimensions.
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
}

# What these give depends on no values.
_SIZES = {
    _aten.sym_numel.default,
    _aten.sym_size.int,
    _aten.sym_stride.int,
}


def bounded_index(x: torch.Tensor, dimension: int, index: torch.Tensor) -> torch.Tensor:
    """Returns an index into a dimension, with what is out of range replaced by what is not."""
    size = 1
    if x.dim() > 0:
        size = x.size(dimension)
    return torch.clamp(index, 0, size - 1)


def is_out_of_range(index: torch.Tensor, bounded: torch.Tensor) -> torch.Tensor:
    """Returns whether `bounded_index` replaced anything: a bool without dimensions."""
    return torch.any(torch.ne(index, bounded))


def bounded_indices(
    x: torch.Tensor, indices: list[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """Returns the indices of `x[indices]`, of which some may be masks, as `bounded_index` does."""
    result: list[torch.Tensor | None] = []
    dimension = 0
    for index in indices:
        if index is None:
            result.append(None)
            dimension += 1
        elif index.dtype == torch.bool or index.dtype == torch.uint8:
            result.append(index)
            dimension += index.dim()
        else:
            size = x.size(dimension)
            result.append(torch.clamp(index, -size, size - 1))
            dimension += 1
    return result


def are_out_of_range(
    x: torch.Tensor, indices: list[torch.Tensor | None], bounded: list[torch.Tensor | None]
) -> torch.Tensor:
    """Returns whether `bounded_indices` replaced anything: a bool without dimensions."""
    result = torch.zeros([], dtype=torch.bool, device=x.device)
    for place in range(len(indices)):
        index, other = indices[place], bounded[place]
        if index is not None and other is not None:
            result = torch.logical_or(result, is_out_of_range(index, other))
    return result


SCRIPTED = (bounded_index, is_out_of_range, bounded_indices, are_out_of_range)
"""What `check_indices` puts into graphs. It is TorchScript, and depends on dtypes."""


def check_indices(module: fx.GraphModule, constants: Collection[int]) -> fx.GraphModule:
    """Returns a graph that never has an index out of range, and says whether it would have.

    Args:
      module: gives a tuple. It is not changed. Its subgraphs are left alone, and so is what it maps
        over a dimension: whatever is computed there would have to leave it first.
      constants: those of its inputs that are always the same, by position. Indices that depend on
        no values but theirs are left alone.

    Returns:
      A graph with the same inputs and one more output, the last: a bool without dimensions. When
      that is true, the others mean nothing. `module` itself if there is nothing to check.
    """
    changed = copy.deepcopy(module)
    graph = changed.graph
    found = []
    varying: set[fx.Node] = set()
    place = depth = 0
    for node in list(graph.nodes):
        depth += nesting_change(node)
        if node.op == "placeholder":
            if place not in constants:
                varying.add(node)
            place += 1
        elif node.target not in _SIZES and not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
            if not depth:
                found += _checks(node, varying)
    if not found:
        return module
    output = graph.output_node()
    with graph.inserting_before(output):
        result = found[0]
        for other in found[1:]:
            result = graph.call_function(_aten.logical_or.default, (result, other))
    output.args = ((*output.args[0], result),)  # type: ignore[misc]
    changed.recompile()
    return changed


def _checks(node: fx.Node, varying: set[fx.Node]) -> list[fx.Node]:
    """Has a node take indices that are in range; returns what says whether they were before."""
    target: Any = node.target
    if target in _INDEXING:
        x, indices = node.args[:2]
        assert isinstance(indices, list | tuple)
        if varying.isdisjoint(indices):
            return []
        bounded = _insert(node, bounded_indices, x, indices)
        node.update_arg(1, bounded)
        return [_insert(node, are_out_of_range, x, indices, bounded)]
    if target in _ALONG_DIMENSION:
        dimension, place = node.args[1], 2
    elif target in _OF_ROWS:
        dimension, place = 0, 1
    elif target is _aten.one_hot.default:
        return _class_checks(node, varying)
    else:
        return []
    index = node.args[place]
    if index not in varying:
        return []
    bounded = _insert(node, bounded_index, node.args[0], dimension, index)
    node.update_arg(place, bounded)
    return [_insert(node, is_out_of_range, index, bounded)]


def _class_checks(node: fx.Node, varying: set[fx.Node]) -> list[fx.Node]:
    """Does what `_checks` does for the classes that `one_hot` makes columns of."""
    classes, count = node.args
    if classes not in varying or count == -1:  # as many as there are
        return []
    bounded = _insert(node, _aten.clamp.default, classes, 0, count - 1)
    node.update_arg(0, bounded)
    return [_insert(node, is_out_of_range, classes, bounded)]


def _insert(node: fx.Node, function: Callable[..., Any], *arguments: Any) -> fx.Node:
    with node.graph.inserting_before(node):
        return node.graph.call_function(function, arguments)
