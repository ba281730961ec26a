"""Which calls recur with the same sizes, and what has been recorded of those."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch

from slipway.program import Method

__all__ = ["RecurringCalls"]

Recording = TypeVar("Recording")

_Sizes = tuple[torch.Size, ...]

_CALLS_BEFORE = 3
"""Calls with the same sizes before one is recorded, which takes as long as several calls."""

_KEPT_COUNTS = 1024
"""Sizes whose calls are counted, of each method: the latest."""


class RecurringCalls(Generic[Recording]):
    """The recordings of calls, by their method and the sizes of their inputs. For one thread.

    They go with the methods.
    """

    def __init__(self) -> None:
        self._methods: WeakKeyDictionary[Method, _Recordings[Recording]] = WeakKeyDictionary()

    def find(self, method: Method, tensors: Sequence[torch.Tensor]) -> Recording | None:
        """Returns what was recorded of a call with inputs of these sizes; None if nothing was."""
        known = self._methods.get(method)
        return None if known is None else known.by_sizes.get(_sizes(tensors))

    def is_due(self, method: Method, tensors: Sequence[torch.Tensor]) -> bool:
        """Counts a call of which nothing is recorded, and returns whether it is time to do so."""
        known = self._methods.setdefault(method, _Recordings())
        return known.may_grow and known.count(_sizes(tensors)) > _CALLS_BEFORE

    def add(
        self, method: Method, tensors: Sequence[torch.Tensor], recording: Recording | None
    ) -> None:
        """Keeps a recording; with None, no more calls of the method will be due."""
        known = self._methods[method]
        if recording is None:
            known.may_grow = False
        else:
            known.by_sizes[_sizes(tensors)] = recording


class _Recordings(Generic[Recording]):
    """Of one method."""

    def __init__(self) -> None:
        self.by_sizes: dict[_Sizes, Recording] = {}
        self.may_grow = True
        self._counts: OrderedDict[_Sizes, int] = OrderedDict()

    def count(self, sizes: _Sizes) -> int:
        """Counts a call, and returns how many there have been."""
        count = self._counts.pop(sizes, 0) + 1
        self._counts[sizes] = count
        if len(self._counts) > _KEPT_COUNTS:
            self._counts.popitem(last=False)
        return count


def _sizes(tensors: Sequence[torch.Tensor]) -> _Sizes:
    return tuple(tensor.shape for tensor in tensors)
