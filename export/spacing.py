"""`torch.linspace` of as many steps as a dynamic size says.

The operator takes their number as a plain integer, which would be the example's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

__all__ = ["linspace_of_any_length"]

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)

_operator = torch.linspace


@contextlib.contextmanager
def linspace_of_any_length() -> Iterator[None]:
    """Has tracing compute what `torch.linspace` gives where its number of steps is dynamic."""
    with mock.patch.object(torch, "linspace", _linspace):
        yield


# Dynamo takes a dynamic size for an int when it interprets calls: this one is run when it has one.
@torch._dynamo.allow_in_graph  # type: ignore[untyped-decorator]
def _linspace(start: Any, end: Any, steps: Any, **options: Any) -> torch.Tensor:
    """Returns what the operator gives, by others where the number of steps is dynamic."""
    dtype = options.get("dtype") or torch.get_default_dtype()
    if (
        not isinstance(steps, torch.SymInt)
        or not all(isinstance(number, _NUMBERS) for number in (start, end))
        or not dtype.is_floating_point
        or not options.keys() <= {"device", "dtype"}
    ):
        return _operator(start, end, steps, **options)
    options["dtype"] = dtype
    count: Any = steps
    place = torch.arange(count, **options)
    step = torch.full((), end - start, **options) / _at_least_1(count - 1)
    # From the nearer end, as the operator does: both are exact.
    near_start = place < _at_least_1(count // 2)
    return torch.where(near_start, start + place * step, end - (count - 1 - place) * step)


def _at_least_1(size: Any) -> Any:
    return torch.sym_max(size, 1)  # type: ignore[no-untyped-call]
