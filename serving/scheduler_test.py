"""A real scheduler with real programs; an answer that is held up keeps an instance busy."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slipway.program import Method
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import (
    DeadlineError,
    DeviceError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    ResourceExhaustedError,
    ServingError,
    UnavailableError,
)
from slipway.serving.memory_budget import MemoryBudget
from slipway.serving.model import Environment
from slipway.serving.observation import RequestObserver
from slipway.serving.plan import InferenceRequest
from slipway.serving.scheduler import ClosedError, SchedulingOptions
from slipway.tests.serving.programs import write_places
from slipway.tests.serving.scheduling import Answer, Bench, affine, columns, lookup, no_rows

MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    benches = []

    def make(
        memory: int = 2**40,
        on_device_failure: Callable[[], None] = lambda: None,
        **options: int | float,
    ) -> Bench:
        scheduling = SchedulingOptions(**options)  # type: ignore[arg-type]
        environment = Environment(scheduling, MemoryBudget(memory), on_device_failure)
        benches.append(Bench(tmp_path, environment))
        return benches[-1]

    yield make
    for bench in benches:
        bench.repository.close()
        assert not bench.memory.used


def sizes(bench: Bench, name: str = "affine") -> dict[int, int]:
    return dict(bench.model(name).statistics.batch_sizes())


def failures(bench: Bench, name: str = "affine") -> int:
    return bench.model(name).statistics.to_proto(name, 1).inference_stats.fail.count


def learn_rows(bench: Bench) -> None:
    """Has it learn what a row of affine takes."""
    for _ in range(3):
        answer = bench.submit(affine())
        bench.run()
        answer.wait()


def finish(bench: Bench, busy: Answer, answers: Sequence[Answer], name: str = "affine") -> None:
    bench.run(name)
    busy.release()
    for answer in answers:
        answer.wait()
    bench.repository.close()


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, {1: 1, 8: 1, 2: 1}), ({"max_batch_size": 4}, {1: 1, 4: 2, 2: 1})],
    ids=["by the contract", "by the options"],
)
def test_a_batch_grows_while_the_instance_is_busy_up_to_its_bound(
    make_bench: MakeBench, options: dict[str, int], expected: dict[int, int]
) -> None:
    bench = make_bench(**options)
    busy = bench.occupy()
    answers = [bench.submit(affine(value)) for value in range(10)]
    finish(bench, busy, answers)
    assert sizes(bench) == expected
    for value, answer in enumerate(answers):
        assert answer.outputs["y"].tolist() == [[value * 6, value * 22, value * 38]]


def test_rows_along_another_axis_are_joined_and_split_too(make_bench: MakeBench) -> None:
    bench = make_bench()
    busy = bench.occupy("columns")
    answers = [bench.submit(columns(value, rows)) for value, rows in ((1, 1), (2, 3), (3, 2))]
    finish(bench, busy, answers, "columns")
    assert sizes(bench, "columns") == {1: 1, 6: 1}
    for answer, value, rows in zip(answers, (1, 2, 3), (1, 3, 2), strict=True):
        assert answer.outputs["y"].tolist() == [[value * n] * rows for n in (6, 22, 38)]


def test_other_symbols_must_agree(make_bench: MakeBench) -> None:
    bench = make_bench()
    busy = bench.occupy("lookup")
    answers = [bench.submit(lookup([[0] * length])) for length in (1, 2, 1, 2, 3)]
    finish(bench, busy, answers, "lookup")
    assert sizes(bench, "lookup") == {1: 2, 2: 2}
    assert [answer.outputs["kept"].shape[1] for answer in answers] == [1, 2, 1, 2, 3]


def test_the_most_urgent_run_first_and_equals_as_they_came(make_bench: MakeBench) -> None:
    bench = make_bench(max_batch_size=1)
    busy = bench.occupy()
    order: list[int] = []

    class Ordered(Answer):
        def respond(self, message: bytes) -> None:
            super().respond(message)
            order.append(int(self.outputs["y"][0, 0]) // 6)

    urgency = [0, 3, 1, 8, 3, 100]  # 0 is what requests have that say nothing: 8
    answers = [
        bench.submit(affine(value, priority=priority), Ordered())
        for value, priority in enumerate(urgency)
    ]
    finish(bench, busy, answers)
    assert order == [2, 1, 4, 0, 3, 5]


def test_as_many_batches_run_at_once_as_there_are_instances(make_bench: MakeBench) -> None:
    bench = make_bench(instances=2, max_batch_size=1)
    held = [bench.submit(affine(), Answer(is_held=True)) for _ in range(2)]
    bench.run()
    for answer in held:
        answer.wait()
    waiting = bench.submit(affine())
    bench.run()
    assert bench.model("affine").scheduler.queued[0] == 1
    held[1].release()
    waiting.wait()
    held[0].release()


def test_a_queue_is_bounded_in_requests(make_bench: MakeBench) -> None:
    bench = make_bench(max_queue_requests=2)
    learn_rows(bench)
    busy = bench.occupy()
    answers = [bench.submit(affine()) for _ in range(2)]
    with pytest.raises(
        OverloadedError, match=r"has 2 requests of .* waiting, and at most 2 "
    ) as caught:
        bench.submit(affine())
    assert caught.value.retry_after > 0
    finish(bench, busy, answers)
    assert all(answer.error is None for answer in answers)


@pytest.mark.parametrize(("sizes", "taken"), [(0.5, 1), (1.9, 1), (2.0, 2), (2.9, 2)])
def test_a_queue_is_bounded_in_bytes_but_takes_one_request_always(
    make_bench: MakeBench, sizes: float, taken: int
) -> None:
    size = len(affine())
    bench = make_bench(max_queue_bytes=int(sizes * size))
    busy = bench.occupy()
    answers = [bench.submit(affine()) for _ in range(taken)]
    assert bench.model("affine").scheduler.queued == (taken, taken * size)
    with pytest.raises(OverloadedError):
        bench.submit(affine())
    finish(bench, busy, answers)
    assert all(answer.outputs for answer in answers)


def test_memory_is_bounded_over_all_models_and_freed_by_answers(make_bench: MakeBench) -> None:
    bench = make_bench(memory=len(affine()) + len(lookup()))
    busy = bench.occupy()
    other = bench.submit(lookup())
    with pytest.raises(OverloadedError, match=r"the server holds .* bytes of requests"):
        bench.submit(lookup())
    finish(bench, busy, [])
    bench.run("lookup")
    other.wait()
    assert other.outputs


def test_a_request_that_cannot_be_run_in_time_is_refused_at_once(make_bench: MakeBench) -> None:
    bench = make_bench()
    learn_rows(bench)
    # Unless nothing waits: there is nothing else to do.
    bench.submit(affine(), expires_in=1e-9)
    busy = bench.occupy()
    waiting = [bench.submit(affine()) for _ in range(3)]
    with pytest.raises(OverloadedError, match="would not answer this request before") as caught:
        bench.submit(affine(), expires_in=1e-9)
    assert caught.value.retry_after > 0
    answer = bench.submit(affine(), expires_in=3600)
    finish(bench, busy, [*waiting, answer])
    assert answer.outputs


def spend_processor(
    monkeypatch: pytest.MonkeyPatch, seconds: Callable[[torch.Tensor], float]
) -> None:
    """Has every model take as long for its first input, of a processor."""
    original = Method.run

    def run(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        # What only waited would be run by the thread that receives.
        end = time.thread_time() + seconds(tensors[0])
        while time.thread_time() < end:
            pass
        return original(self, tensors)

    monkeypatch.setattr(Method, "run", run)


@pytest.fixture
def slow_lookup(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Lookup takes 12.5 ms of a processor for each token."""
    spend_processor(monkeypatch, lambda tokens: tokens.numel() / 80)
    return make_bench()


def learn(bench: Bench, counts: Sequence[int]) -> float:
    """Has it learn how long lookup takes; returns the seconds of as many tokens as the first."""
    seconds = []
    for _ in range(5):
        for count in counts:
            started = time.monotonic()
            answer = bench.submit(lookup([[1] * count]))
            bench.run("lookup")
            answer.wait()
            seconds.append(time.monotonic() - started)
    return sum(seconds[:: len(counts)]) / 5


def test_a_request_is_not_taken_on_if_it_could_be_begun_in_time_but_not_answered(
    slow_lookup: Bench,
) -> None:
    learn(slow_lookup, (16, 1))
    busy = slow_lookup.occupy("lookup")
    waiting = slow_lookup.submit(lookup([[1] * 8]))
    # Each of the two takes about 100 ms.
    with pytest.raises(OverloadedError, match="would not answer this request before"):
        slow_lookup.submit(lookup([[1] * 8]), expires_in=0.15)
    finish(slow_lookup, busy, [waiting], "lookup")
    assert waiting.outputs


def test_what_is_less_urgent_takes_no_time_from_a_request(slow_lookup: Bench) -> None:
    seconds = learn(slow_lookup, (16,))
    busy = slow_lookup.occupy("lookup")
    # Taken for long ones, as only these have been seen.
    waiting = [slow_lookup.submit(lookup()) for _ in range(40)]
    soon = 20 * seconds
    with pytest.raises(OverloadedError, match="would not answer this request before"):
        slow_lookup.submit(lookup(), expires_in=soon)
    urgent = slow_lookup.submit(lookup(priority=7), expires_in=soon)
    finish(slow_lookup, busy, [urgent, *waiting], "lookup")
    assert urgent.outputs


def test_a_request_is_not_run_if_it_takes_longer_than_there_is_left(slow_lookup: Bench) -> None:
    seconds = learn(slow_lookup, (16, 1, 1, 1, 1))
    assert not slow_lookup.model("lookup").scheduler.is_inline
    busy = slow_lookup.occupy("lookup")
    late = slow_lookup.submit(lookup([[1] * 16]), expires_in=3.5 * seconds)
    time.sleep(3 * seconds)  # longer than it takes, or it would be tried all the same
    # There is half of the time left that it takes. Most others need less.
    finish(slow_lookup, busy, [late], "lookup")
    assert isinstance(late.error, DeadlineError)
    assert "was not run" in str(late.error)


@pytest.mark.parametrize("instances", [1, 2])
def test_who_is_refused_is_told_how_long_the_rows_that_wait_take(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, instances: int
) -> None:
    spend_processor(monkeypatch, lambda x: 2e-3 * x.shape[0])
    bench = make_bench(instances=instances)
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        answer = bench.submit(affine(rows=8))
        bench.run()
        answer.wait()
        while bench.model("affine").scheduler.running:
            time.sleep(0)
        seconds.append(time.monotonic() - started)
    busy = bench.occupy()
    waiting = bench.submit(affine(rows=8))
    with pytest.raises(OverloadedError) as caught:
        bench.submit(affine(), expires_in=1e-9)
    assert 16e-3 <= caught.value.retry_after * instances <= max(seconds)
    finish(bench, busy, [waiting])


def test_requests_without_rows_are_answered_and_others_after_them(make_bench: MakeBench) -> None:
    bench = make_bench()
    for message in (lookup(), lookup(), no_rows(3), lookup()):
        answer = bench.submit(message)
        bench.run("lookup")
        answer.wait()
        assert answer.outputs


def test_a_request_whose_time_is_over_is_refused_at_once(make_bench: MakeBench) -> None:
    bench = make_bench()
    with pytest.raises(DeadlineError):
        bench.submit(affine(), expires_in=0)
    assert bench.model("affine").scheduler.queued == (0, 0)


def test_a_request_that_did_not_wait_is_tried_however_long_it_seems_to_take(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    with monkeypatch.context() as patch:
        spend_processor(patch, lambda tokens: 0.03)
        learn(bench, (1, 1))
    answer = bench.submit(lookup([[1] * 16] * 4), expires_in=1.5)  # by that it takes 1.9 seconds
    bench.run("lookup")
    answer.wait()
    assert answer.outputs


@pytest.mark.parametrize("is_looked_for", [True, False])
def test_a_request_that_expires_in_the_queue_is_never_run(
    make_bench: MakeBench, is_looked_for: bool
) -> None:
    bench = make_bench()
    busy = bench.occupy()
    late, good = bench.submit(affine(), expires_in=1e-9), Answer()
    pending = bench.pending(affine(), good, expires_in=3600)
    scheduler = bench.model("affine").scheduler
    scheduler.submit(pending)
    if is_looked_for:
        assert scheduler.expire() == pending.expires
        late.wait()
        assert scheduler.queued == (1, len(affine()))
    finish(bench, busy, [late, good])
    assert isinstance(late.error, DeadlineError)
    assert "was not run" in str(late.error)
    assert good.outputs
    assert sizes(bench) == {1: 2}
    assert failures(bench) == 1


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (OSError("secret"), InternalError),
        (MemoryError("secret"), ResourceExhaustedError),
        (InvalidRequestError("it has no room"), InvalidRequestError),
    ],
)
def test_an_answer_that_cannot_be_made_is_an_error_and_the_others_get_theirs(
    make_bench: MakeBench,
    monkeypatch: pytest.MonkeyPatch,
    problem: Exception,
    expected: type[ServingError],
) -> None:
    original, answered = InferenceRequest.response, itertools.count()

    def response(self: InferenceRequest, *results: Any) -> bytes:
        if next(answered) == 2:  # of the one that keeps the instance busy, and three
            raise problem
        return original(self, *results)

    monkeypatch.setattr(InferenceRequest, "response", response)
    bench = make_bench()
    busy = bench.occupy()
    answers = [bench.submit(affine(value)) for value in range(3)]
    finish(bench, busy, answers)
    assert [bool(answer.outputs) for answer in answers] == [True, False, True]
    assert isinstance(answers[1].error, expected)
    assert "secret" not in str(answers[1].error)
    counts = bench.model("affine").statistics.snapshot().codes
    assert counts == {"OK": 3, answers[1].error.status.name: 1}


def test_outputs_have_the_sizes_that_the_values_give_them(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    write_places(tmp_path / "places" / "1")
    bench = make_bench()
    for values, expected in (
        ([0, 5, 0, 7], [[1], [3]]),
        ([0, 0, 0, 0], []),
        ([1, 1, 1, 0], [[0], [1], [2]]),
    ):
        request = protocol.ModelInferRequest(model_name="places")
        request.inputs.add(name="x", datatype="FP32", shape=[4])
        request.raw_input_contents.append(np.array(values, np.float32).tobytes())
        answer = bench.submit(request.SerializeToString())
        bench.run("places")
        answer.wait()
        assert answer.outputs["places"].tolist() == expected


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            torch.Tensor.double,
            "an output of torch.float64 where its contract promises torch.float3",
        ),
        (lambda y: y[:, :2], "an output of shape [1, 2] where its contract promises [1, 3]"),
        (lambda y: y[:, 0], "an output of shape [1] where its contract promises [1, 3]"),
        (None, "gave 0 outputs instead of 1"),
    ],
)
def test_outputs_that_are_not_as_promised_are_an_error_of_ours(
    make_bench: MakeBench,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[torch.Tensor], torch.Tensor] | None,
    problem: str,
) -> None:
    original = Method.run
    monkeypatch.setattr(
        Method,
        "run",
        lambda self, tensors: [] if change is None else [*map(change, original(self, tensors))],
    )
    bench = make_bench()
    answer = bench.submit(affine())
    bench.run()
    answer.wait()
    assert isinstance(answer.error, InternalError)
    assert problem in str(answer.error)


def test_a_request_that_no_message_can_hold_is_not_let_in_alone() -> None:
    budget = MemoryBudget(2**20)
    budget.take(2**31 - 1)
    budget.give_back(2**31 - 1)
    with pytest.raises(ResourceExhaustedError, match="may hold 1048576 of requests: send a small"):
        budget.take(2**31)
    assert budget.used == 0
    MemoryBudget(2**40).take(2**31)


def test_a_request_whose_client_goes_frees_what_it_held(make_bench: MakeBench) -> None:
    bench = make_bench(memory=2 * len(affine()))
    scheduler = bench.model("affine").scheduler
    busy = bench.occupy()
    pending = bench.pending(affine(), Answer())
    scheduler.submit(pending)
    with pytest.raises(OverloadedError):
        bench.submit(affine())
    scheduler.cancel(pending)
    scheduler.cancel(pending)
    assert scheduler.queued == (0, 0)
    good = bench.submit(affine())
    finish(bench, busy, [good])
    assert sizes(bench) == {1: 2}
    assert failures(bench) == 1


def test_a_client_that_has_gone_is_not_run_for(make_bench: MakeBench) -> None:
    bench = make_bench()
    busy = bench.occupy()
    gone, good = bench.submit(affine()), bench.submit(affine())
    gone.cancelled = True
    finish(bench, busy, [good])
    assert sizes(bench) == {1: 2}
    assert failures(bench) == 1
    assert not gone.entered.is_set()


def test_who_has_gone_or_is_late_is_not_run_for_again(make_bench: MakeBench) -> None:
    bench = make_bench()
    busy = bench.occupy("lookup")
    good = bench.submit(lookup([[1]]), Answer(is_held=True))
    bad, gone = bench.submit(lookup([[77]])), bench.submit(lookup())
    late = bench.submit(lookup(), expires_in=0.2)
    expires = time.monotonic() + 0.2
    busy.release()
    good.wait()  # the first of them that is run alone
    gone.cancelled = True
    while time.monotonic() < expires:
        pass
    good.release()
    bad.wait()
    late.wait()
    bench.repository.close()
    assert isinstance(late.error, DeadlineError)
    assert not gone.entered.is_set()
    assert sizes(bench, "lookup") == {1: 2}
    assert failures(bench, "lookup") == 3


def test_bad_values_fail_alone(make_bench: MakeBench) -> None:
    bench = make_bench()
    busy = bench.occupy("lookup")
    good, bad, other = (bench.submit(lookup([[token]])) for token in (1, 77, 2))
    finish(bench, busy, [good, bad, other], "lookup")
    assert good.outputs["embedded"].tolist() == [[[2.0, 3.0]]]
    assert other.outputs["embedded"].tolist() == [[[4.0, 5.0]]]
    assert "selects an element that does not exist" in str(bad.error)
    assert sizes(bench, "lookup") == {1: 3}
    assert failures(bench, "lookup") == 1


def test_sixteen_sizes_of_batches_are_remembered(make_bench: MakeBench) -> None:
    bench = make_bench()
    for rows in (1, 2):
        for length in range(1, 17):
            answer = bench.submit(lookup([[0] * length] * rows))
            bench.run("lookup")
            answer.wait()
    recent = bench.model("lookup").executor.recent_bindings
    assert recent == [(2, length) for length in range(1, 17)]


def test_a_request_that_the_model_refuses_is_observed_to_its_end(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slipway.access")
    bench = make_bench()
    answer = Answer()
    pending = bench.pending(lookup([[77]]), answer)
    pending.record = RequestObserver(1.0, None).begin("ModelInfer", (), pending.arrived)
    bench.model("lookup").scheduler.submit(pending)
    bench.run("lookup")
    answer.wait()
    (line,) = [record for record in caplog.records if record.name == "slipway.access"]
    assert vars(line)["fields"]["code"] == "INVALID_ARGUMENT"
    assert vars(line)["fields"]["batch_rows"] == 1


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, above: int) -> None:
    """Makes every model fail for batches of more rows than `above`."""
    run = Method.run

    def maybe(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if tensors[0].shape[0] > above:
            raise error
        return run(self, tensors)

    monkeypatch.setattr(Method, "run", maybe)


def test_too_little_memory_for_a_batch_lowers_the_batch_and_fails_nobody(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    failing(monkeypatch, torch.OutOfMemoryError("out of memory"), above=3)
    busy = bench.occupy()
    answers = [bench.submit(affine()) for _ in range(6)]
    bench.run()
    busy.release()
    for answer in answers:
        answer.wait()
    again = bench.occupy()
    answers += [bench.submit(affine()) for _ in range(6)]
    finish(bench, again, answers)
    assert all(answer.outputs for answer in answers)
    # Six one by one, then two of three, and what kept it busy.
    assert sizes(bench) == {1: 8, 3: 2}


@pytest.mark.parametrize(
    ("batches", "largest"),
    [
        ({2: 90}, 2),
        ({2: 100}, 3),
        ({1: 100}, 2),  # they were not full
        ({2: 100, 3: 90}, 3),
        ({2: 100, 3: 100, 4: 100}, 5),
    ],
)
def test_a_lowered_batch_is_raised_again_up_to_what_it_was(
    make_bench: MakeBench,
    monkeypatch: pytest.MonkeyPatch,
    batches: dict[int, int],
    largest: int,
) -> None:
    # With a delay, its own threads run all, and one can be held up.
    bench = make_bench(max_batch_size=5, batch_delay=1e-9)
    with monkeypatch.context() as patch:
        failing(patch, torch.OutOfMemoryError("out of memory"), above=2)
        busy = bench.occupy()
        answers = [bench.submit(affine()) for _ in range(5)]
        busy.release()
        bench.run()
        for answer in answers:
            answer.wait()
    for rows, count in batches.items():
        for _ in range(count):
            full = bench.submit(affine(rows=rows))
            bench.run()
            full.wait()
    busy = bench.occupy()
    before = sizes(bench)
    finish(bench, busy, [bench.submit(affine()) for _ in range(6)])
    assert (
        max(size for size, count in sizes(bench).items() if count > before.get(size, 0)) == largest
    )


def test_too_little_memory_for_one_request_is_its_own_error(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    failing(monkeypatch, torch.OutOfMemoryError("out of memory"), above=1)
    large = bench.submit(affine(rows=2))
    bench.run()
    large.wait()
    assert isinstance(large.error, ResourceExhaustedError)
    good = bench.submit(affine())
    bench.run()
    good.wait()
    assert good.outputs


def test_a_device_that_fails_answers_everyone_and_is_reported(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = threading.Event()
    bench = make_bench(on_device_failure=reported.set)
    busy = bench.occupy()
    failing(monkeypatch, torch.AcceleratorError("CUDA error"), above=2)
    answers = [bench.submit(affine()) for _ in range(3)]
    finish(bench, busy, answers)
    assert reported.wait(60)
    assert all(isinstance(answer.error, DeviceError) for answer in answers)


def test_a_device_that_fails_while_requests_run_one_by_one_answers_the_rest(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = threading.Event()
    bench = make_bench(on_device_failure=reported.set)
    busy = bench.occupy()
    errors = iter([RuntimeError("the batch"), torch.AcceleratorError("CUDA error")])

    def run(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        raise next(errors)

    monkeypatch.setattr(Method, "run", run)
    answers = [bench.submit(affine()) for _ in range(3)]
    finish(bench, busy, answers)
    assert reported.wait(60)
    assert all(isinstance(answer.error, DeviceError) for answer in answers)


def run_until_inline(bench: Bench) -> None:
    """Brings requests to affine, one by one, until the thread that brings one runs it."""
    for _ in range(200):
        answer = bench.submit(affine())
        bench.run()
        answer.wait()
        if answer.thread is threading.current_thread():
            return
        while bench.model("affine").scheduler.running:  # what answered may not have ended yet
            time.sleep(0)
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
        while bench.model("affine").scheduler.running:
            time.sleep(0)
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


def test_batches_of_a_size_that_becomes_slow_are_left_to_others(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    run_until_inline(bench)
    spend_processor(monkeypatch, lambda tensor: 4e-3)
    for _ in range(3):
        answer = bench.submit(affine())
        bench.run()
        answer.wait()
        while bench.model("affine").scheduler.running:
            time.sleep(0)
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
    scheduler = bench.model("affine").scheduler

    def wait_for(answers: Sequence[Answer]) -> None:
        bench.run()
        for answer in answers:
            answer.wait()
        while scheduler.running:
            time.sleep(0)

    for _ in range(learned):
        wait_for([bench.submit(affine())])
    wait_for([bench.submit(affine()) for _ in range(4)])
    assert {size: count for size, count in sizes(bench).items() if size > 1} == expected


def test_batches_that_take_a_while_are_left_to_others_unless_requests_come_one_at_a_time(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend_processor(monkeypatch, lambda tensors: 1e-3)
    bench = make_bench(instances=2)
    scheduler = bench.model("affine").scheduler

    def are_left(count: int, others: int = 0) -> bool:
        answers = [bench.submit(affine()) for _ in range(count)]
        bench.run()
        for answer in answers:
            answer.wait()
        while scheduler.running > others:
            time.sleep(0)
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
    until = time.monotonic() + 60
    while len(answers) < 5:
        assert time.monotonic() < until, "nobody took in what had arrived"
        time.sleep(0)
    for answer in answers:
        answer.wait()
    bench.repository.close()
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


def test_who_has_little_time_is_not_kept_waiting_for_others(make_bench: MakeBench) -> None:
    bench = make_bench(batch_delay=20.0)
    busy = bench.occupy()
    patient, hurried = bench.submit(affine()), bench.submit(affine(), expires_in=2.0)
    busy.release()
    hurried.wait()
    patient.wait()
    assert hurried.outputs and patient.outputs
    assert sizes(bench) == {1: 1, 2: 1}


def test_a_delay_lets_a_batch_fill(make_bench: MakeBench) -> None:
    bench = make_bench(batch_delay=3600.0)
    busy = bench.occupy()
    answers = [bench.submit(affine())]
    busy.release()  # the first waits for others now
    assert not answers[0].entered.wait(0.1)
    for _ in range(7):
        answers.append(bench.submit(affine()))
        bench.run()
    for answer in answers:
        answer.wait()
    assert sizes(bench) == {1: 1, 8: 1}


def test_no_request_waits_for_longer_than_the_delay_because_others_came(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(batch_delay=3600.0)
    busy = bench.occupy()
    first = Answer()
    pending = bench.pending(affine(), first)
    pending.arrived -= 3600
    bench.model("affine").scheduler.submit(pending)
    second = bench.submit(affine())
    busy.release()
    first.wait()
    second.wait()


def test_there_is_no_delay_while_an_instance_is_idle(make_bench: MakeBench) -> None:
    bench = make_bench(batch_delay=3600.0, instances=2)
    busy = bench.occupy()
    waiting = bench.submit(affine())
    busy.release()
    waiting.wait()


def test_closing_waits_for_no_delay(make_bench: MakeBench) -> None:
    bench = make_bench(batch_delay=3600.0)
    busy = bench.occupy()
    waiting = bench.submit(affine())
    busy.release()
    assert not waiting.entered.wait(0.1)
    closing = threading.Thread(target=bench.repository.close)
    closing.start()
    waiting.wait()
    closing.join()


def test_a_batch_that_cannot_grow_is_not_kept_waiting(make_bench: MakeBench) -> None:
    bench = make_bench(batch_delay=3600.0)
    busy = bench.occupy()
    first, second = bench.submit(affine(rows=5)), bench.submit(affine(rows=4))
    busy.release()
    first.wait()  # with another row there would be too many
    assert not second.entered.is_set()
    bench.submit(affine(rows=4))
    bench.run()
    second.wait()
    assert sizes(bench) == {1: 1, 5: 1, 8: 1}


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
    with pytest.raises(ClosedError):
        while True:
            with contextlib.suppress(DeadlineError):
                bench.submit(affine(), expires_in=0)
    held.release()
    for thread in (receiving, closing):
        thread.join(60)
        assert not thread.is_alive()
    assert large.outputs
