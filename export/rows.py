"""Values for calls of one row, and whether rows of a batch come out as they do alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["EXTREMES", "Tolerance", "Values", "as_drawn", "first_difference", "join", "varied"]

Values = Callable[[torch.Tensor, Sequence[int], torch.Generator], torch.Tensor]
"""Gives a tensor like the example's one, of a shape, from a source of random numbers."""


def as_drawn(
    example: torch.Tensor, shape: Sequence[int], generator: torch.Generator
) -> torch.Tensor:
    """Returns a tensor of the example's own values: indices stay within their tables."""
    flat = example.detach().reshape(-1)
    picked = torch.randint(max(1, flat.numel()), (math.prod(shape),), generator=generator)
    return flat[picked].reshape(tuple(shape))


def varied(example: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Returns a tensor of values about the example's, which may all have been the same."""
    if example.dtype is torch.bool:
        return torch.randint(2, tuple(shape), generator=generator).bool()
    drawn = as_drawn(example, shape, generator)
    if not (example.is_floating_point() or example.is_complex()):
        wide = example.to(torch.int64)
        low, high = min(int(wide.min()), 0), min(max(int(wide.max()), 1), 2**62)
        return torch.randint(low, high + 1, tuple(shape), generator=generator).to(example.dtype)
    wide = drawn.to(torch.complex128 if drawn.is_complex() else torch.float64)
    noise = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    values = wide * (1 + noise[0] / 4) + noise[1] / 2
    if not values.is_complex() and bool((example.double() >= 0).all()):
        values = values.abs()  # it may be for a logarithm or a square root
    return values.to(example.dtype)


def _large(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype is torch.bool:
        return ~tensor
    if tensor.is_floating_point():
        return ((tensor.double() + 1) * min(1e4, torch.finfo(tensor.dtype).max / 8)).to(
            tensor.dtype
        )
    if tensor.is_complex():
        return (tensor + 1) * 1e4
    # Not beyond the values there are: others might be no indices.
    return torch.full_like(tensor, int(tensor.to(torch.int64).max()))


def _not_a_number(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.full(tensor.shape, math.nan).to(tensor.dtype)
    return torch.zeros_like(tensor)


def _infinite(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.full(tensor.shape, math.inf).to(tensor.dtype)
    return _large(tensor)


EXTREMES: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (_not_a_number, _large, _infinite)
"""What a row is replaced by. Integers become the smallest or largest of the row."""


def join(calls: Sequence[Sequence[torch.Tensor]], dimensions: Sequence[int]) -> list[torch.Tensor]:
    """Returns the tensors of calls, or of their results, joined, each along its dimension."""
    return [
        torch.cat(tensors, dimension)
        for tensors, dimension in zip(zip(*calls, strict=True), dimensions, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Of a row of an output: absolute, and relative to the largest magnitude in the row."""

    atol: float
    rtol: float

    def differing_rows(
        self, actual: torch.Tensor, expected: torch.Tensor, dimension: int
    ) -> list[int]:
        """Returns the rows along a dimension in which two tensors of one shape differ."""
        if torch.equal(actual, expected):
            return []
        one, other = (
            torch.view_as_real(tensor) if tensor.is_complex() else tensor
            for tensor in (actual.movedim(dimension, 0), expected.movedim(dimension, 0))
        )
        one, other = (
            one.flatten(1) if one.dim() > 1 else one[:, None],
            other.reshape(len(other), -1),
        )
        same = one == other
        if one.is_floating_point():
            one, other = one.double(), other.double()
            largest = torch.where(other.isfinite(), other.abs(), 0).amax(1, keepdim=True)
            same |= (one - other).abs() <= self.atol + self.rtol * largest
            same |= one.isnan() & other.isnan()
        return [int(row) for row in (~same.all(1)).nonzero()]


def first_difference(
    actual: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    dimensions: Sequence[int],
    tolerance: Tolerance,
    leaving_out: int | None = None,
) -> tuple[int, int] | None:
    """Returns the first output in which two results differ, and the row of it; None if they agree.

    Args:
      actual, expected: a tensor for each output.
      dimensions: of each, which one counts the rows.
      tolerance: of what is no integer and no boolean.
      leaving_out: a row that may differ.
    """
    for place, (one, other, dimension) in enumerate(zip(actual, expected, dimensions, strict=True)):
        if one.shape != other.shape or one.dtype is not other.dtype:
            return place, 0
        for row in tolerance.differing_rows(one, other, dimension):
            if row != leaving_out:
                return place, row
    return None
