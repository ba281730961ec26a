"""The processors of the host, shared by the batches that run on it."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from slipway.serving.thread_priority import give_way

__all__ = ["Processors", "keep_freed_memory"]

Result = TypeVar("Result")

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8

_KEPT_BYTES = 2**28
_MAPPED_BYTES = 2**25

_ALONE_BEFORE = 4
"""Batches that must have run alone, one after the other, for the next to get all processors."""


class Processors:
    """Gives batches all processors while they come one at a time, and else a single one each.

    A batch alone is done as soon as can be; batches side by side do more in all, since operators
    cannot be divided without loss. Safe for several threads.
    """

    def __init__(self, count: int, per_batch: int | None = None) -> None:
        """Makes a share of all of them.

        Args:
          count: how many there are.
          per_batch: how many each batch uses whatever others do; None for what is said above.
        """
        self._count = count
        self._per_batch = per_batch or 1
        self._running = self._alone = 0
        self._lock = threading.Lock()
        # Each thread that divides operators keeps helpers of its own for good. As soon as there are
        # more of them than processors, OpenMP has them sleep after every operator, and all become
        # several times slower. So one thread does it for everybody.
        self._team: ThreadPoolExecutor | None = None
        if per_batch is None and count > 1:
            self._team = ThreadPoolExecutor(
                1, "all processors", initializer=_start_team, initargs=(count,)
            )

    def run(self, call: Callable[[], Result], *, may_divide: bool = True) -> tuple[Result, float]:
        """Returns what `call` returns, and the seconds of processors that it took.

        It has its share of the processors meanwhile.

        Args:
          call: runs a batch.
          may_divide: whether it takes long enough for several processors to be of use.
        """
        with self._lock:
            self._running += 1
            if self._running > 1:
                self._alone = -1  # those that run now do not count as alone when they end
            is_alone = self._alone >= _ALONE_BEFORE
        try:
            if self._team is not None and may_divide and is_alone:
                result, seconds = self._team.submit(_timed, call).result()
                return result, seconds * self._count
            torch.set_num_threads(self._per_batch)
            result, seconds = _timed(call)
            return result, seconds * self._per_batch
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._alone += 1


def _start_team(count: int) -> None:
    give_way()
    torch.set_num_threads(count)


def _timed(call: Callable[[], Result]) -> tuple[Result, float]:
    started = time.thread_time()
    return call(), time.thread_time() - started


def keep_freed_memory() -> None:
    """Has the allocator keep what a batch frees for the next one; does nothing without glibc.

    It would give results of operators back to the system as soon as they are freed, and the system
    clears every page that it hands out again: an encoder's batch of 8 took 1.9 times as long. What
    is larger than 32 MiB goes back still, and so does what is free beyond 256 MiB. Threads share
    two pools for each processor, so that those which come with new versions bring no memory.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
        library.mallopt(_ARENA_MAX, 2 * len(os.sched_getaffinity(0)))
