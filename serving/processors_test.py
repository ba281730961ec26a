from __future__ import annotations

import threading

import torch

from slipway.serving.processors import Processors, keep_freed_memory


def test_batches_that_come_one_at_a_time_get_all_processors() -> None:
    processors = Processors(3)
    counts = [processors.run(torch.get_num_threads)[0] for _ in range(8)]
    assert counts[0] == 1
    assert counts[-1] == 3
    assert processors.run(torch.get_num_threads, may_divide=False)[0] == 1


def test_batches_side_by_side_get_one_each() -> None:
    processors = Processors(3)
    for _ in range(8):
        processors.run(torch.get_num_threads)
    together = threading.Barrier(2)
    counts: list[int] = []

    def batch() -> int:
        together.wait(10)
        return torch.get_num_threads()

    def run() -> None:
        for _ in range(8):
            counts.append(processors.run(batch)[0])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The first of all could not know that another would come.
    assert counts[2:] == [1] * 14


def test_a_fixed_number_is_kept() -> None:
    processors = Processors(8, per_batch=2)
    assert [processors.run(torch.get_num_threads)[0] for _ in range(8)] == [2] * 8


def test_what_is_raised_is_raised_and_counts_as_over() -> None:
    processors = Processors(2)

    def fail() -> None:
        raise MemoryError

    for _ in range(8):
        try:
            processors.run(fail)
        except MemoryError:
            continue
        raise AssertionError
    assert processors.run(torch.get_num_threads)[0] == 2


def test_memory_is_kept_and_can_be_used_as_before() -> None:
    keep_freed_memory()
    assert torch.ones(2**24).sum().item() == 2**24
