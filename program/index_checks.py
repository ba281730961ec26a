"""Indices that depend on a call's values, checked where one out of range would end the device.

On the host torch looks at every index, and raises an error. CUDA has the device assert it: one
token outside the vocabulary, and nothing runs on the device any more until the process ends. What
torch checks nowhere is where bags of embeddings and segments begin: it adds up what lies outside of
its memory.
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
_BAGS = {
    _aten.embedding_bag.default,
    _aten.embedding_bag.padding_idx,
}
_OF_ROWS = {_aten.embedding.default, *_BAGS}
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

# These have offsets, of parts of what they add up.
_PARTS = {*_BAGS, _aten.segment_reduce.default}

_CHECKABLE = {*_OF_ROWS, *_ALONG_DIMENSION, *_INDEXING, *_PARTS, _aten.one_hot.default}

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


def ordered_offsets(offsets: torch.Tensor, count: int) -> torch.Tensor:
    """Returns where parts of so many items begin, with what is out of range or order replaced."""
    return torch.cummax(torch.clamp(offsets, 0, count), -1)[0]


SCRIPTED = (bounded_index, is_out_of_range, bounded_indices, are_out_of_range, ordered_offsets)
"""What `check_indices` puts into graphs. It is TorchScript, and depends on dtypes."""


def check_indices(
    module: fx.GraphModule, constants: Collection[int], *, offsets_only: bool = False
) -> fx.GraphModule:
    """Returns a graph that never has an index out of range, and says whether it would have.

    Args:
      module: gives a tuple. It is not changed. Its subgraphs are left alone, and so is what it maps
        over a dimension: whatever is computed there would have to leave it first.
      constants: those of its inputs that are always the same, by position. Indices that depend on
        no values but theirs are left alone.
      offsets_only: whether to leave everything alone but offsets of bags and segments.

    Returns:
      A graph with the same inputs and one more output, the last: a bool without dimensions. When
      that is true, the others mean nothing. `module` itself if there is nothing to check.
    """
    checkable = _PARTS if offsets_only else _CHECKABLE
    if not any(node.target in checkable for node in module.graph.nodes):
        return module
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
            if depth:
                continue
            if node.target in _PARTS:
                found += _offset_checks(node, varying)
            if node.target in _CHECKABLE and not offsets_only:
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
    x = _argument(node, 0)
    if target in _INDEXING:
        indices = _argument(node, 1)
        if not isinstance(indices, list | tuple) or varying.isdisjoint(indices):
            return []
        bounded = _insert(node, bounded_indices, x, indices)
        _replace_argument(node, 1, bounded)
        return [_insert(node, are_out_of_range, x, indices, bounded)]
    if target in _ALONG_DIMENSION:
        dimension, place = _argument(node, 1), 2
    elif target in _OF_ROWS:
        dimension, place = 0, 1
    elif target is _aten.one_hot.default:
        return _class_checks(node, varying)
    else:
        return []
    index = _argument(node, place)
    if index not in varying:
        return []
    bounded = _insert(node, bounded_index, x, dimension, index)
    _replace_argument(node, place, bounded)
    return [_insert(node, is_out_of_range, index, bounded)]


def _offset_checks(node: fx.Node, varying: set[fx.Node]) -> list[fx.Node]:
    """Does what `_checks` does for where bags and segments begin."""
    # Torch checks lengths of segments, unless the model says that they are right.
    place = 2 if node.target in _BAGS else 4
    offsets = _argument(node, place)
    if offsets not in varying:
        return []
    if node.target in _BAGS:
        count = _insert(node, _aten.sym_numel.default, _argument(node, 1))
    else:
        axis = _argument(node, 5)
        count = _insert(node, _aten.sym_size.int, _argument(node, 0), axis)
    ordered = _insert(node, ordered_offsets, offsets, count)
    _replace_argument(node, place, ordered)
    return [_insert(node, is_out_of_range, offsets, ordered)]


def _class_checks(node: fx.Node, varying: set[fx.Node]) -> list[fx.Node]:
    """Does what `_checks` does for the classes that `one_hot` makes columns of."""
    classes, count = _argument(node, 0), _argument(node, 1)
    if classes not in varying or not isinstance(count, int) or count < 0:
        return []  # as many as there are
    bounded = _insert(node, _aten.clamp.default, classes, 0, count - 1)
    _replace_argument(node, 0, bounded)
    return [_insert(node, is_out_of_range, classes, bounded)]


def _argument(node: fx.Node, place: int) -> Any:
    """Returns what a node gives for a parameter of its operator; the default if nothing."""
    assert isinstance(node.target, torch._ops.OpOverload)
    parameter = node.target._schema.arguments[place]
    if place < len(node.args):
        return node.args[place]
    return node.kwargs.get(parameter.name, parameter.default_value)


def _replace_argument(node: fx.Node, place: int, value: fx.Node) -> None:
    if place < len(node.args):
        node.update_arg(place, value)
    else:
        assert isinstance(node.target, torch._ops.OpOverload)
        node.update_kwarg(node.target._schema.arguments[place].name, value)


def _insert(node: fx.Node, function: Callable[..., Any], *arguments: Any) -> fx.Node:
    with node.graph.inserting_before(node):
        return node.graph.call_function(function, arguments)
