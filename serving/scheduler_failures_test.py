"""What becomes of the others in a batch, and of later ones, when something goes wrong."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from slipway.program import Method
from slipway.serving.errors import (
    DeviceError,
    InternalError,
    InvalidRequestError,
    ResourceExhaustedError,
    ServingError,
)
from slipway.serving.observation import RequestObserver
from slipway.serving.plan import InferenceRequest
from slipway.tests.serving.scheduling import (
    Answer,
    MakeBench,
    affine,
    benches,
    failures,
    finish,
    lookup,
    sizes,
)


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    with benches(tmp_path) as make:
        yield make


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


def test_whose_client_goes_while_others_are_run_one_by_one_is_not_run(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, gone = Method.run, Answer()
    ran: list[float] = []

    def run(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if tensors[0].shape[0] > 1:
            raise RuntimeError("the batch")
        ran.append(float(tensors[0][0, 0]))
        gone.cancelled = ran[-1] == 1
        return original(self, tensors)

    bench = make_bench()
    busy = bench.occupy()
    monkeypatch.setattr(Method, "run", run)
    first, _, last = bench.submit(affine(1)), bench.submit(affine(2), gone), bench.submit(affine(3))
    finish(bench, busy, [first, last])
    assert ran == [1, 3]
    assert not gone.entered.is_set()
    assert bench.model("affine").statistics.snapshot().codes == {"OK": 3, "CANCELLED": 1}


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
    assert reported.is_set()
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
    assert reported.is_set()
    assert all(isinstance(answer.error, DeviceError) for answer in answers)
