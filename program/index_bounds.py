"""What bounds the indices of operators: TorchScript that `check_indices` puts into graphs."""

from __future__ import annotations

import torch
from torch._C._functorch import is_batchedtensor

from slipway.program.errors import DataViolation

__all__ = [
    "NOT_THERE",
    "SCRIPTED",
    "are_out_of_range",
    "bounded",
    "bounded_bag_numbers",
    "bounded_bags",
    "bounded_batches",
    "bounded_classes",
    "bounded_element",
    "bounded_from_either_end",
    "bounded_groups",
    "bounded_index",
    "bounded_indices",
    "bounded_labels",
    "bounded_labels_of",
    "bounded_lengths",
    "bounded_mask",
    "bounded_pivots",
    "bounded_places",
    "bounded_rows",
    "bounded_segments",
    "in_range",
    "is_out_of_range",
]

NOT_THERE = (
    "a value of an input selects an element that does not exist, such as a token outside the "
    "vocabulary, or a bag or segment that ends before it begins"
)
"""What callers are told."""


def bounded(index: torch.Tensor, least: int, size: int) -> torch.Tensor:
    """Returns an index, with what is not in `least .. size - 1` replaced by what is.

    Raises:
      DataViolation: nothing is, as there are no elements.
    """
    if size == 0 and index.numel() > 0:
        raise DataViolation("a value of an input selects an element of a dimension that has none")
    return torch.clamp(index, least, size - 1)


def bounded_index(x: torch.Tensor, dimension: int, index: torch.Tensor) -> torch.Tensor:
    """Returns an index into a dimension, with what is out of range replaced by what is not."""
    size = 1
    if x.dim() > 0:
        size = x.size(dimension)
    return bounded(index, 0, size)


def bounded_from_either_end(x: torch.Tensor, dimension: int, index: torch.Tensor) -> torch.Tensor:
    """Does what `bounded_index` does where negative indices count from the end."""
    size = 1
    if x.dim() > 0:
        size = x.size(dimension)
    return bounded(index, -size, size)


def bounded_element(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Does what `bounded_from_either_end` does for an index of all elements."""
    return bounded(index, -x.numel(), x.numel())


def bounded_offsets(offsets: torch.Tensor, size: int) -> torch.Tensor:
    """Returns where parts of so many items begin, none of which begins before another."""
    return torch.cummax(torch.clamp(offsets, 0, size), -1)[0]


def bounded_bags(index: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Does what `bounded_offsets` does for bags of an index, the first of which begins at 0."""
    result = bounded_offsets(offsets, index.numel())
    result[:1].zero_()
    return result


def bounded_segments(x: torch.Tensor, axis: int, offsets: torch.Tensor) -> torch.Tensor:
    """Does what `bounded_offsets` does for segments along an axis."""
    return bounded_offsets(offsets, x.size(axis))


def bounded_counts(counts: torch.Tensor, size: int) -> torch.Tensor:
    """Returns counts along the last dimension that have so many items together, at most."""
    ends = torch.cumsum(torch.clamp(counts, 0, size), -1).clamp(max=size)
    starts = torch.roll(ends, 1, -1)
    starts.narrow(-1, 0, min(1, starts.size(-1))).zero_()
    return (ends - starts).to(counts.dtype)


def bounded_lengths(x: torch.Tensor, axis: int, lengths: torch.Tensor) -> torch.Tensor:
    """Does what `bounded_counts` does for lengths of segments along an axis."""
    return bounded_counts(lengths, x.size(axis))


def bounded_batches(x: torch.Tensor, batch_sizes: torch.Tensor) -> torch.Tensor:
    """Does what `bounded_counts` does for packed sequences, of which there only get fewer.

    Raises:
      DataViolation: there are none.
    """
    if batch_sizes.numel() == 0:
        raise DataViolation("packed sequences have no first element")
    falling = torch.cummin(torch.clamp(batch_sizes, 0, x.size(0)), 0)[0]
    return bounded_counts(falling, x.size(0))


def bounded_rows(offsets: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Does what `bounded_offsets` does for rows that divide all columns among them."""
    size = columns.size(-1)
    result = bounded_offsets(offsets, size)
    result.narrow(-1, result.size(-1) - 1, 1).fill_(size)
    result.narrow(-1, 0, 1).zero_()
    return result


def bounded_labels(
    scores: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Does what `bounded` does for labels, as many of each row as count."""
    result = bounded(labels, 0, scores.size(-1))
    if labels.dim() < scores.dim() - 1:
        return result  # those of all rows, one after the other
    # What lies behind them is padding, whatever its value.
    places = torch.arange(labels.size(-1), device=labels.device)
    counts = torch.lt(places, lengths.to(labels.device).reshape(-1, 1))
    return torch.where(counts.reshape(labels.shape), result, labels)


def bounded_labels_of(
    scores: torch.Tensor, labels: torch.Tensor, lengths: list[int]
) -> torch.Tensor:
    """Does what `bounded_labels` does for lengths that are no tensor."""
    return bounded_labels(scores, labels, torch.tensor(lengths, dtype=torch.int64))


def bounded_mask(x: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Returns a mask, without the places for which there are no elements left."""
    wide = torch.logical_or(mask, torch.zeros_like(x, dtype=torch.bool))
    count = torch.cumsum(torch.flatten(wide), 0).reshape(wide.shape)
    return torch.logical_and(wide, torch.le(count, source.numel()))


def bounded_places(x: torch.Tensor, dimensions: int, index: torch.Tensor) -> torch.Tensor:
    """Does what `bounded` does for places in the last dimensions of pictures, as one number."""
    size = 1
    for dimension in range(x.dim() - dimensions, x.dim()):
        size = size * x.size(dimension)
    return bounded(index, 0, size)


def bounded_classes(x: torch.Tensor, classes: torch.Tensor, ignored: int) -> torch.Tensor:
    """Does what `bounded` does for classes, one of which is ignored, whatever its value."""
    result = bounded(classes, 0, x.size(min(1, x.dim() - 1)))
    return torch.where(torch.eq(classes, ignored), classes, result)


def bounded_bag_numbers(x: torch.Tensor, bags: torch.Tensor) -> torch.Tensor:
    """Does what `bounded` does for which bag each index is of, where `x` has a row for each."""
    return bounded(bags, 0, x.size(0))


def bounded_groups(x: torch.Tensor, y: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Does what `bounded_offsets` does for where groups end of which `x @ y` is computed."""
    # Of the rows of the first, the columns of the second, or what both have in common.
    size = x.size(-1)
    if y.dim() == 3:
        size = x.size(0)
    elif x.dim() == 3:
        size = y.size(1)
    return bounded_offsets(ends, size)


def bounded_pivots(pivots: torch.Tensor) -> torch.Tensor:
    """Returns pivots of rows that exist, which are negative in pairs; all are 1 otherwise."""
    size = pivots.size(-1)
    is_negative = torch.lt(pivots, 0)
    is_half = torch.remainder(torch.cumsum(is_negative, -1), 2).to(torch.bool)
    # Within a run of them, the first of a pair makes their number odd.
    is_single = torch.logical_and(is_half, torch.logical_not(is_negative))
    is_single = torch.logical_or(
        is_single.any(), is_half.narrow(-1, max(size - 1, 0), min(size, 1)).any()
    )
    is_outside = torch.logical_or(torch.lt(pivots, -size), torch.gt(pivots, size))
    is_wrong = torch.logical_or(is_outside, torch.eq(pivots, 0)).any()
    return torch.where(torch.logical_or(is_wrong, is_single), 1, pivots)


def is_out_of_range(index: torch.Tensor, bounded: torch.Tensor) -> torch.Tensor:
    """Returns whether anything was replaced: a bool without dimensions."""
    return torch.any(torch.ne(index, bounded))


def in_range(index: torch.Tensor, bounded: torch.Tensor) -> torch.Tensor:
    """Returns an index that is in range.

    Raises:
      DataViolation: it was not before, unless it is mapped over a dimension, where nobody can tell.
    """
    is_wrong = is_out_of_range(index, bounded)
    if not (is_batchedtensor(is_wrong) or is_wrong.is_meta) and is_wrong.item():
        raise DataViolation(NOT_THERE)
    return bounded


def bounded_indices(
    x: torch.Tensor, indices: list[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """Returns the indices of `x[indices]`, as `bounded_from_either_end` does, and masks as is."""
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
            result.append(bounded(index, -size, size))
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


SCRIPTED = (
    bounded,
    bounded_index,
    bounded_from_either_end,
    bounded_element,
    bounded_offsets,
    bounded_bags,
    bounded_segments,
    bounded_counts,
    bounded_lengths,
    bounded_batches,
    bounded_rows,
    bounded_labels,
    bounded_labels_of,
    bounded_mask,
    bounded_places,
    bounded_classes,
    bounded_bag_numbers,
    bounded_groups,
    bounded_pivots,
    is_out_of_range,
    bounded_indices,
    are_out_of_range,
)
"""What `check_indices` puts into graphs. It is TorchScript, and depends on dtypes."""
