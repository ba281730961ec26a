"""Indices that depend on a call's values, checked where one out of range would end the device.

On the host torch looks at every index, and raises an error. CUDA has the device assert it: one
token outside the vocabulary, and nothing runs on the device any more until the process ends. What
torch checks nowhere is where bags of embeddings and segments begin: it adds up what lies outside of
its memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import fx

from slipway.program.index_bounds import (
    are_out_of_range,
    bounded,
    bounded_bag_numbers,
    bounded_bags,
    bounded_batches,
    bounded_classes,
    bounded_element,
    bounded_from_either_end,
    bounded_groups,
    bounded_index,
    bounded_indices,
    bounded_labels,
    bounded_labels_of,
    bounded_lengths,
    bounded_mask,
    bounded_pivots,
    bounded_places,
    bounded_rows,
    bounded_segments,
    in_range,
    is_out_of_range,
)
from slipway.program.mutation import written_arguments
from slipway.program.vmap import nesting_change

__all__ = ["check_indices"]

_aten = torch.ops.aten

# The first argument is what an operator looks into. Of these, the second is an index of rows, and
# the third is where in that each bag begins;
_OF_BAGS = {
    _aten._embedding_bag.default,
    _aten._embedding_bag_forward_only.default,
    _aten.embedding_bag.default,
    _aten.embedding_bag.padding_idx,
}
# of these the second is a dimension, and the third is the index;
_ALONG_DIMENSION = {
    _aten.gather.default,
    _aten.index_add.default,
    _aten.index_add_.default,
    _aten.index_copy.default,
    _aten.index_copy_.default,
    _aten.index_reduce.default,
    _aten.index_reduce_.default,
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
# of these as well, and it may be negative to count from the end;
_FROM_EITHER_END = {
    _aten.index_fill.int_Scalar,
    _aten.index_fill.int_Tensor,
    _aten.index_fill_.int_Scalar,
    _aten.index_fill_.int_Tensor,
}
# of these the second is an index of all elements, which may be negative, too;
_OF_ELEMENTS = {
    _aten.put.default,
    _aten.put_.default,
    _aten.take.default,
}
# of these it is a mask, of places for the first elements of the third;
_OF_MASKS = {
    _aten.masked_scatter.default,
    _aten.masked_scatter_.default,
}
# of these it is a list, of an index or none for each of the first dimensions.
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
}

# Torch takes these to be in range.
_UNSAFE_INDEXING = {
    _aten._unsafe_index.Tensor,
    _aten._unsafe_index_put.default,
}

# Of these the second are labels, and the fourth says how many of them count.
_OF_LABELS = {
    _aten._ctc_loss.Tensor,
    _aten._ctc_loss.default,
    _aten.ctc_loss.IntList,
    _aten.ctc_loss.Tensor,
}

# Of these the third are labels, and the fifth says how many of them count.
_GRADIENTS_OF_LABELS = {
    _aten._ctc_loss_backward.Tensor,
    _aten._ctc_loss_backward.default,
}

# Of these the third are classes, and the sixth is the one that is ignored.
_GRADIENTS_OF_CLASSES = {
    _aten.nll_loss2d_backward.default,
    _aten.nll_loss_backward.default,
}

# Of these the second is an index of rows, and the third says how many rows there are.
_GRADIENTS_OF_ROWS = {
    _aten.embedding_backward.default,
    _aten.embedding_dense_backward.default,
}

# Of these the second is a picture: where its largest elements are, and in how many dimensions.
_GRADIENTS_OF_PLACES = {
    _aten.adaptive_max_pool2d_backward.default: (2, 2),
    _aten.adaptive_max_pool3d_backward.default: (2, 3),
    _aten.max_pool2d_with_indices_backward.default: (7, 2),
    _aten.max_pool3d_with_indices_backward.default: (7, 3),
}

# Of this, lengths and offsets along an axis are given by name.
_SEGMENTS = _aten.segment_reduce.default
_GRADIENT_OF_SEGMENTS = _aten._segment_reduce_backward.default

_GRADIENT_OF_BAGS = _aten._embedding_bag_backward.default
_GRADIENT_OF_ROWS_OF_BAGS = _aten._embedding_bag_dense_backward.default
_GRADIENT_OF_WEIGHTS_IN_BAGS = _aten._embedding_bag_per_sample_weights_backward.default

_GROUPS = _aten._grouped_mm.default
_PIVOTS = _aten.linalg_ldl_solve.default

_PACKED = _aten._pad_packed_sequence.default
_ROWS_TO_OFFSETS = _aten._convert_indices_from_coo_to_csr.default
_OFFSETS_TO_ROWS = _aten._convert_indices_from_csr_to_coo.default

_UNCHECKED = {
    *_GRADIENTS_OF_CLASSES,
    *_GRADIENTS_OF_LABELS,
    *_GRADIENTS_OF_PLACES,
    *_GRADIENTS_OF_ROWS,
    *_OF_BAGS,
    *_OF_LABELS,
    *_UNSAFE_INDEXING,
    _GRADIENT_OF_BAGS,
    _GRADIENT_OF_ROWS_OF_BAGS,
    _GRADIENT_OF_SEGMENTS,
    _GRADIENT_OF_WEIGHTS_IN_BAGS,
    _GROUPS,
    _OFFSETS_TO_ROWS,
    _PACKED,
    _PIVOTS,
    _ROWS_TO_OFFSETS,
    _SEGMENTS,
}
_CHECKABLE = {
    *_ALONG_DIMENSION,
    *_FROM_EITHER_END,
    *_INDEXING,
    *_OF_ELEMENTS,
    *_OF_MASKS,
    *_UNCHECKED,
    _aten.embedding.default,
    _aten.one_hot.default,
}

# What these give depends on no values.
_SIZES = {
    _aten.sym_numel.default,
    _aten.sym_size.int,
    _aten.sym_stride.int,
}


def check_indices(
    module: fx.GraphModule, constants: Collection[int], *, unchecked_only: bool = False
) -> fx.GraphModule:
    """Returns a graph that never has an index out of range, and says whether it would have.

    Args:
      module: gives a tuple. It is not changed. Its subgraphs, and what it maps over a dimension,
        from where a bool would have to be brought first, have only that checked which torch does
        not look at: subgraphs raise DataViolation, and what is mapped gets an index in range.
      constants: those of its inputs that are always the same, by position. Indices that depend on
        no values but theirs are left alone.
      unchecked_only: whether to leave alone what torch looks at itself on the host.

    Returns:
      A graph with the same inputs and one more output, the last: a bool without dimensions. When
      that is true, the others mean nothing. `module` itself if there is nothing to check.
    """
    checkable = _UNCHECKED if unchecked_only else _CHECKABLE
    in_subgraphs = (node for part in _subgraphs(module) for node in part.graph.nodes)
    if not any(node.target in checkable for node in module.graph.nodes) and not any(
        node.target in _UNCHECKED for node in in_subgraphs
    ):
        return module
    changed = copy.deepcopy(module)
    graph = changed.graph
    is_changed = any([_check_subgraph(part) for part in _subgraphs(changed)])
    found = []
    varying = _varying(graph, constants)
    depth = 0
    for node in list(graph.nodes):
        depth += nesting_change(node)
        if depth:
            is_changed |= _check_alone(node)
        elif node.target in checkable:
            found += _checks(node, varying, unchecked_only)
    if not found and not is_changed:
        return module
    if not found:
        changed.recompile()
        return changed
    output = graph.output_node()
    with graph.inserting_before(output):
        result = found[0]
        for other in found[1:]:
            result = graph.call_function(_aten.logical_or.default, (result, other))
    output.args = ((*output.args[0], result),)  # type: ignore[misc]
    changed.recompile()
    return changed


def _varying(graph: fx.Graph, constants: Collection[int]) -> set[fx.Node]:
    """Returns the nodes whose values may depend on a call's."""
    inputs = (node for node in graph.nodes if node.op == "placeholder")
    reached = [node for place, node in enumerate(inputs) if place not in constants]
    varying: set[fx.Node] = set()
    changed: set[fx.Node] = set()
    while reached:
        node = reached.pop()
        if node in varying or node.target in _SIZES:
            continue
        varying.add(node)
        reached += node.users
        # What it writes into may be a view of anything that that was computed from.
        written = list(written_arguments(node))
        while written:
            other = written.pop()
            if other not in changed:
                changed.add(other)
                reached.append(other)
                written += other.all_input_nodes
    return varying


def _checks(node: fx.Node, varying: set[fx.Node], unchecked_only: bool) -> list[fx.Node]:
    """Has a node take indices that are in range; returns what says whether they were before."""
    given = _given(node)
    if node.target in _INDEXING or node.target in _UNSAFE_INDEXING:
        x, indices = given[:2]
        if not isinstance(indices, list | tuple) or not any(
            _is_in(item, varying) for item in indices
        ):
            return []
        bounded_list = _insert(node, bounded_indices, x, indices)
        _replace(node, 1, bounded_list)
        return [_insert(node, are_out_of_range, x, indices, bounded_list)]
    found = []
    for place, function, arguments in _bounds(node.target, given):
        index = given[place]
        # Of bags, torch looks at the rows.
        is_wanted = not unchecked_only or function is not bounded_index
        if is_wanted and _is_in(index, varying):
            replaced = _insert(node, function, *arguments)
            _replace(node, place, replaced)
            found.append(_insert(node, is_out_of_range, index, replaced))
    return found


def _subgraphs(module: fx.GraphModule) -> list[fx.GraphModule]:
    parts = module.modules()
    return [part for part in parts if isinstance(part, fx.GraphModule) and part is not module]


def _check_subgraph(module: fx.GraphModule) -> bool:
    """Does what `_check_alone` does for all nodes of a subgraph."""
    is_changed = any([_check_alone(node) for node in list(module.graph.nodes)])
    if is_changed:
        module.recompile()
    return is_changed


def _check_alone(node: fx.Node) -> bool:
    """Has a node raise an error for what torch does not look at; returns whether it may."""
    if node.target not in _UNCHECKED:
        return False
    is_changed = False
    given = _given(node)
    for place, function, arguments in _bounds(node.target, given):
        if function is not bounded_index and isinstance(given[place], fx.Node):
            replaced = _insert(node, function, *arguments)
            _replace(node, place, _insert(node, in_range, given[place], replaced))
            is_changed = True
    return is_changed


def _is_in(given: object, nodes: set[fx.Node]) -> bool:
    # Others may have no hash, such as slices, which only a crafted program gives.
    return isinstance(given, fx.Node) and given in nodes


def _given(node: fx.Node) -> list[Any]:
    """Returns what a node gives for each parameter of its operator, and defaults for the rest."""
    assert isinstance(node.target, torch._ops.OpOverload)
    given = [
        node.kwargs.get(parameter.name, parameter.default_value)
        for parameter in node.target._schema.arguments
    ]
    given[: len(node.args)] = node.args
    return given


def _replace(node: fx.Node, place: int, value: fx.Node) -> None:
    """Has a node give something else for a parameter of its operator."""
    if place < len(node.args):
        node.update_arg(place, value)
    else:
        assert isinstance(node.target, torch._ops.OpOverload)
        node.update_kwarg(node.target._schema.arguments[place].name, value)


def _bounds(
    target: Any, given: list[Any]
) -> list[tuple[int, Callable[..., torch.Tensor], Sequence[Any]]]:
    """Returns which arguments of an operator are indices, and for each what bounds it."""
    if target in _ALONG_DIMENSION:
        return [(2, bounded_index, given[:3])]
    if target in _FROM_EITHER_END:
        return [(2, bounded_from_either_end, given[:3])]
    if target in _OF_ELEMENTS:
        return [(1, bounded_element, given[:2])]
    if target in _OF_MASKS:
        return [(1, bounded_mask, given[:3])]
    if target is _aten.embedding.default:
        return [(1, bounded_index, (given[0], 0, given[1]))]
    if target in _OF_BAGS:
        rows = (1, bounded_index, (given[0], 0, given[1]))
        return [rows, (2, bounded_bags, given[1:3])]
    if target in _OF_LABELS:
        function = bounded_labels if isinstance(given[3], fx.Node) else bounded_labels_of
        return [(1, function, (given[0], given[1], given[3]))]
    if target in _GRADIENTS_OF_LABELS:
        function = bounded_labels if isinstance(given[4], fx.Node) else bounded_labels_of
        return [(2, function, (given[1], given[2], given[4]))]
    if target in _GRADIENTS_OF_CLASSES:
        return [(2, bounded_classes, (given[1], given[2], given[5]))]
    if target in _GRADIENTS_OF_ROWS:
        return [(1, bounded, (given[1], 0, given[2]))]
    if target in _GRADIENTS_OF_PLACES:
        place, dimensions = _GRADIENTS_OF_PLACES[target]
        return [(place, bounded_places, (given[1], dimensions, given[place]))]
    if target is _GRADIENT_OF_SEGMENTS:
        lengths = (4, bounded_lengths, (given[2], given[6], given[4]))
        return [lengths, (5, bounded_segments, (given[2], given[6], given[5]))]
    if target is _GRADIENT_OF_BAGS:
        return [
            (1, bounded, (given[1], 0, given[6])),
            (2, bounded_bags, given[1:3]),
            (3, bounded_bag_numbers, (given[0], given[3])),
        ]
    if target is _GRADIENT_OF_ROWS_OF_BAGS:
        return [
            (1, bounded, (given[1], 0, given[5])),
            (2, bounded_bag_numbers, (given[0], given[2])),
        ]
    if target is _GRADIENT_OF_WEIGHTS_IN_BAGS:
        return [
            (2, bounded_bag_numbers, (given[1], given[2])),
            (3, bounded_bags, given[2:4]),
            (4, bounded_bag_numbers, (given[0], given[4])),
        ]
    if target is _GROUPS:
        return [(2, bounded_groups, given[:3])]
    if target is _PIVOTS:
        return [(1, bounded_pivots, given[1:2])]
    if target is _SEGMENTS:
        offsets = (4, bounded_segments, (given[0], given[5], given[4]))
        # Where it is not told to be unsafe it looks at lengths itself.
        lengths = (2, bounded_lengths, (given[0], given[5], given[2]))
        return [lengths, offsets] if given[6] else [offsets]
    if target is _PACKED:
        return [(1, bounded_batches, given[:2])]
    if target is _ROWS_TO_OFFSETS:
        return [(0, bounded, (given[0], 0, given[1]))]
    if target is _OFFSETS_TO_ROWS:
        return [(0, bounded_rows, given[:2])]
    # Without a number there are as many classes as are given.
    if target is _aten.one_hot.default and given[1] != -1:
        return [(0, bounded, (given[0], 0, given[1]))]
    return []


def _insert(node: fx.Node, function: Callable[..., Any], *arguments: Any) -> fx.Node:
    with node.graph.inserting_before(node):
        return node.graph.call_function(function, arguments)
