"""When memory of large messages is given back."""

from __future__ import annotations

import queue
import time

import pytest

from slipway.serving.memory_budget import MemoryBudget
from slipway.serving.memory_return import LARGE_BYTES, MemoryReturn


def test_it_is_given_back_once_after_the_last_of_several_large_requests() -> None:
    trims: queue.SimpleQueue[float] = queue.SimpleQueue()
    memory_return = MemoryReturn(lambda: trims.put(time.monotonic()), quiet=0.5)
    for _ in range(5):
        memory_return.note()
        last = time.monotonic()
        time.sleep(0.05)
    assert trims.get(timeout=30) >= last + 0.5
    with pytest.raises(queue.Empty):
        trims.get(timeout=1)
    memory_return.note()
    trims.get(timeout=30)


def test_it_is_given_back_once_for_a_request_that_came_while_it_was_given_back() -> None:
    trims: queue.SimpleQueue[None] = queue.SimpleQueue()

    def trim() -> None:
        if trims.empty():
            memory_return.note()
            time.sleep(0.5)  # and so that it was long ago when it is looked at
        trims.put(None)

    memory_return = MemoryReturn(trim, quiet=0.1)
    memory_return.note()
    time.sleep(2)
    assert trims.qsize() == 2


def test_a_budget_tells_of_large_requests_and_of_many_but_not_of_small_ones() -> None:
    told: list[int] = []
    budget = MemoryBudget(2 * LARGE_BYTES, lambda: told.append(budget.used))
    budget.take(1000)
    budget.give_back(1000)
    assert not told
    budget.take(LARGE_BYTES)
    budget.give_back(LARGE_BYTES)
    assert told == [0]
    for _ in range(4):
        budget.take(LARGE_BYTES // 4)
    budget.give_back(LARGE_BYTES // 4)
    assert len(told) == 2
    budget.give_back(LARGE_BYTES // 4)
    assert len(told) == 2
