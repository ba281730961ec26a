"""Which thread runs a batch, who takes in what has arrived, and what closing waits for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from slipway.program import Method
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import DeadlineError, UnavailableError
from slipway.serving.scheduler import ClosedError
from slipway.tests.serving.scheduling import (
    Answer,
    Bench,
    MakeBench,
    affine,
    benches,
    finish,
    sizes,
    spend_processor,
    wait_until,
)


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    with benches(tmp_path) as make:
        yield make


def run_until_inline(bench: Bench) -> None:
    """Brings requests to affine, one by one, until the thread that brings one runs it."""
    for _ in range(200):
        answer = bench.submit(affine())
        bench.run()
        answer.wait()
        if answer.thread is threading.current_thread():
            return
        bench.settle()
    pytest.fail("every batch was handed over")


def test_a_model_that_takes_no_time_is_run_by_the_thread_that_receives(
    make_bench: MakeBench,
) -> None:
    bench = make_bench()
    assert not bench.model("affine").scheduler.is_inline
    run_until_inline(bench)
    assert bench.model("affine").scheduler.is_inline


def test_a_batch_that_waits_for_something_is_not_left_to_others_for_that(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Method.run

    def run(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        time.sleep(1e-3)
        return original(self, tensors)

    monkeypatch.setattr(Method, "run", run)
    bench = make_bench()
    for number in range(200):
        answers = [bench.submit(affine()) for _ in range(2)]
        bench.run()
        for answer in answers:
            answer.wait()
        # By then it is known what batches take.
        if number > 20 and answers[0].thread is threading.current_thread():
            return
        bench.settle()
    pytest.fail("every batch was handed over")


def test_others_go_before_the_threads_that_run_batches(make_bench: MakeBench) -> None:
    bench = make_bench()
    answer = bench.submit(affine())
    bench.run()
    answer.wait()
    assert answer.thread is not None
    own, other = (
        os.getpriority(os.PRIO_PROCESS, thread.native_id or 0)
        for thread in (threading.current_thread(), answer.thread)
    )
    assert other > own or own == 19  # there is nothing lower


def test_a_batch_much_larger_than_any_before_is_left_to_others(make_bench: MakeBench) -> None:
    bench = make_bench()
    run_until_inline(bench)
    large = bench.submit(affine(rows=8), Answer(is_held=True))
    bench.run()
    large.wait()
    assert large.thread is not threading.current_thread()
    # Who receives has no instance of its own.
    waiting = bench.submit(affine())
    bench.run()
    assert bench.model("affine").scheduler.queued[0] == 1
    large.release()
    waiting.wait()


@pytest.mark.parametrize("identifier", ["1", "12"])
def test_batches_of_a_size_that_becomes_slow_are_left_to_others(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, identifier: str
) -> None:
    bench = make_bench()
    run_until_inline(bench)
    spend_processor(monkeypatch, lambda tensor: 4e-3)
    # Of an even number of bytes, and of an odd one.
    request = protocol.ModelInferRequest.FromString(affine())
    request.id = identifier
    for _ in range(3):
        answer = bench.submit(request.SerializeToString())
        bench.run()
        answer.wait()
        bench.settle()
    assert answer.thread is not threading.current_thread()


@pytest.mark.parametrize(("learned", "expected"), [(0, {4: 1}), (10, {2: 2})])
def test_instances_that_are_free_divide_what_is_known_to_be_worth_a_thread(
    make_bench: MakeBench,
    monkeypatch: pytest.MonkeyPatch,
    learned: int,
    expected: dict[int, int],
) -> None:
    spend_processor(monkeypatch, lambda x: 5e-3 * x.shape[0])
    bench = make_bench(instances=2, batch_delay=1e-9)

    def wait_for(answers: Sequence[Answer]) -> None:
        bench.run()
        for answer in answers:
            answer.wait()
        bench.settle()

    for _ in range(learned):
        wait_for([bench.submit(affine())])
    wait_for([bench.submit(affine()) for _ in range(4)])
    assert {size: count for size, count in sizes(bench).items() if size > 1} == expected


def test_batches_that_take_a_while_are_left_to_others_unless_requests_come_one_at_a_time(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend_processor(monkeypatch, lambda tensors: 1e-3)
    bench = make_bench(instances=2)

    def are_left(count: int, others: int = 0) -> bool:
        answers = [bench.submit(affine()) for _ in range(count)]
        bench.run()
        for answer in answers:
            answer.wait()
        bench.settle(running=others)
        return all(answer.thread is not threading.current_thread() for answer in answers)

    run_until_inline(bench)
    assert all(are_left(2) for _ in range(10))
    busy = bench.occupy()
    assert all(are_left(1, others=1) for _ in range(10))
    busy.release()
    run_until_inline(bench)


def test_whoever_ends_a_batch_takes_in_what_has_arrived_unless_enough_waits(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(max_batch_size=2)
    arrivals = [[affine(value) for value in values] for values in ((0, 1, 2, 3), (4,))]
    answers: list[Answer] = []
    waiting: list[int] = []

    def receive() -> None:
        waiting.append(bench.model("affine").scheduler.queued[0])
        if arrivals:
            answers.extend(map(bench.submit, arrivals.pop(0)))

    busy = bench.occupy()
    bench.arrivals.connect(receive)
    busy.release()  # and nobody else has them run
    wait_until(lambda: len(answers) == 5, "somebody who takes in what has arrived")
    for answer in answers:
        answer.wait()
    bench.close()
    assert sizes(bench) == {1: 2, 2: 2}
    # Not after the first batch of two, which left another.
    assert waiting == [0, 0, 0]


def test_a_batch_counts_as_being_run_until_it_was_answered(make_bench: MakeBench) -> None:
    bench = make_bench()

    def rests() -> bool:
        started = time.monotonic()
        bench.arrivals.rest()
        return time.monotonic() - started > 1.9e-3

    busy = bench.occupy()
    assert all(rests() for _ in range(5))
    finish(bench, busy, [])
    assert not all(rests() for _ in range(20))


def test_closing_answers_what_waits_and_takes_no_more(make_bench: MakeBench) -> None:
    bench = make_bench()
    busy = bench.occupy()
    answers = [bench.submit(affine()) for _ in range(3)]
    closing = threading.Thread(target=bench.repository.close)
    closing.start()
    busy.release()
    closing.join(60)
    assert not closing.is_alive()
    assert all(answer.outputs for answer in answers)
    with pytest.raises(UnavailableError, match="is being unloaded"):
        bench.submit(affine())


def test_closing_waits_for_what_the_receiving_thread_runs(make_bench: MakeBench) -> None:
    bench = make_bench()
    run_until_inline(bench)
    held = bench.submit(affine(), Answer(is_held=True))
    receiving = threading.Thread(target=bench.run)
    receiving.start()
    held.wait()
    closing = threading.Thread(target=bench.repository.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    held.release()
    for thread in (receiving, closing):
        thread.join(60)
        assert not thread.is_alive()


def test_closing_waits_for_what_the_receiving_thread_leaves_to_others(
    make_bench: MakeBench,
) -> None:
    bench = make_bench()
    run_until_inline(bench)
    held = bench.submit(affine(), Answer(is_held=True))
    receiving = threading.Thread(target=bench.run)
    receiving.start()
    held.wait()
    large = bench.submit(affine(rows=8))
    closing = threading.Thread(target=bench.repository.close)
    closing.start()

    def is_closed() -> bool:
        try:
            bench.submit(affine(), expires_in=0)
        except ClosedError:
            return True
        except DeadlineError:
            return False
        raise AssertionError("a request was taken on though its time was over")

    wait_until(is_closed, "the end of what is taken on")
    held.release()
    for thread in (receiving, closing):
        thread.join(60)
        assert not thread.is_alive()
    assert large.outputs
