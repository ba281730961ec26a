"""Requests, deadlines, cancellations and failures in any order: each caller gets their own rows or
their own error, and every batch that is formed satisfies the contract.

Everything is real but the network: the programs, the scheduler, its threads.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from slipway.program import Method
from slipway.serving.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    ServingError,
)
from slipway.serving.model import Environment
from slipway.serving.request_queue import PendingRequest
from slipway.serving.scheduler import SchedulingOptions
from slipway.tests.serving.programs import AFFINE_WEIGHT, LOOKUP_TABLE
from slipway.tests.serving.scheduling import Answer, Bench, affine, columns, lookup, small_request

MODELS = ("affine", "columns", "lookup")
ROOT = tempfile.TemporaryDirectory()
"""The programs, which are written once."""


@pytest.fixture(autouse=True, scope="module")
def every_batch_satisfies_the_contract() -> Iterator[None]:
    """Checks, with the contract itself, every call that a model gets."""
    run = Method.run

    def checked(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        specs = self.contract.tensor_inputs
        assert [tensor.dtype for tensor in tensors] == [
            getattr(torch, spec.dtype.value) for spec in specs.values()
        ]
        self.contract.check(
            {
                name: (spec.dtype, tuple(tensor.shape))
                for (name, spec), tensor in zip(specs.items(), tensors, strict=True)
            }
        )
        return run(self, tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Method, "run", checked)
        yield
    ROOT.cleanup()


@dataclass(frozen=True)
class Wanted:
    """A request, and what its caller must get.

    Attributes:
      model: its name.
      message: the request.
      outputs: by name; empty for one that the model cannot take.
    """

    model: str
    message: bytes
    outputs: dict[str, Any]


@st.composite
def wanted_requests(draw: st.DrawFn) -> Wanted:
    model = draw(st.sampled_from(MODELS))
    priority = draw(st.sampled_from([0, 0, 0, 1, 9]))
    if model == "lookup":
        shape = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        # A token in ten is outside the vocabulary, and makes whatever batch it is in fail.
        token = st.sampled_from([0, 1, 2] * 6 + [3, -1])
        count = shape[0] * shape[1]
        tokens = np.array(draw(st.lists(token, min_size=count, max_size=count))).reshape(shape)
        outputs = {}
        if tokens.min() >= 0 and tokens.max() <= 2:
            outputs = {"embedded": LOOKUP_TABLE.numpy()[tokens], "kept": tokens != 1}
        return Wanted(model, lookup(tokens.tolist(), priority=priority), outputs)
    value, rows = draw(st.integers(-1000, 1000)), draw(st.integers(1, 8))
    y = np.full((rows, 4), value, np.float32) @ AFFINE_WEIGHT.numpy().T
    if model == "affine":
        return Wanted(model, affine(value, rows, priority=priority), {"y": y})
    return Wanted(model, columns(value, rows, priority=priority), {"y": y.T})


def check_answer(wanted: Wanted, answer: Answer) -> None:
    if wanted.outputs:
        assert answer.error is None
        assert answer.outputs.keys() == wanted.outputs.keys()
        for name, values in wanted.outputs.items():
            np.testing.assert_allclose(answer.outputs[name], values, rtol=1e-5)
    else:
        assert isinstance(answer.error, InvalidRequestError)
        assert "selects an element that does not exist" in str(answer.error)


def check_counts(bench: Bench, answers: int) -> None:
    """Checks that every request was counted once, and no batch was larger than may be."""
    total = 0
    for name in MODELS:
        statistics = bench.model(name).statistics.to_proto(name, 1)
        total += statistics.inference_stats.success.count + statistics.inference_stats.fail.count
        for batch in statistics.batch_stats:
            assert batch.batch_size <= (4 if name == "lookup" else 8)
        assert bench.model(name).scheduler.queued == (0, 0)
    assert total == answers
    assert not bench.memory.used


@dataclass
class _Sent:
    wanted: Wanted
    pending: PendingRequest
    answer: Answer
    was_refused: bool = False
    was_forgotten: bool = False


class Schedules(RuleBasedStateMachine):
    """A scheduler whose instances can be held up, so that queues become long."""

    options = SchedulingOptions(batch_delay=1e-9)  # with a delay, threads of its own run all

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[_Sent] = []
        self.busy: list[Answer] = []

    @initialize()
    def load(self) -> None:
        self.bench = Bench(Path(ROOT.name), Environment(self.options))

    @rule(
        wanted=wanted_requests(),
        expires_in=st.sampled_from([math.inf, math.inf, math.inf, 3600.0, 1e-3, 1e-9, 0.0]),
    )
    def submit(self, wanted: Wanted, expires_in: float) -> None:
        answer = Answer()
        pending = self.bench.pending(wanted.message, answer, expires_in)
        sent = _Sent(wanted, pending, answer)
        # Refused or not, which depends on the clock: what is drawn later must not.
        self.sent.append(sent)
        try:
            self._scheduler(sent).submit(pending)
        except OverloadedError:
            assert 0 < expires_in < math.inf
            sent.was_refused = True
        except DeadlineError:
            assert expires_in == 0
            sent.was_refused = True

    @rule(name=st.sampled_from(MODELS))
    def run_pending(self, name: str) -> None:
        self.bench.run(name)

    @rule(name=st.sampled_from(MODELS))
    def expire(self, name: str) -> None:
        self.bench.model(name).scheduler.expire()

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def client_goes(self, data: st.DataObject) -> None:
        sent = data.draw(st.sampled_from(self.sent))
        if not sent.was_refused:
            sent.answer.cancelled = True
            self._scheduler(sent).cancel(sent.pending)
            sent.was_forgotten = True

    @precondition(lambda self: not self.busy and self.options.batch_delay)
    @rule(name=st.sampled_from(MODELS))
    def hold_up(self, name: str) -> None:
        # Behind what waits, so it may take a while until the instance is held up.
        self.busy.append(self.bench.submit(small_request(name), Answer(is_held=True)))
        self.bench.run(name)

    @precondition(lambda self: self.busy)
    @rule()
    def let_go(self) -> None:
        self.busy[-1].release()

    def teardown(self) -> None:
        for name in MODELS:
            self.bench.run(name)
        for answer in self.busy:
            answer.release()
        self.bench.close()
        taken = [sent for sent in self.sent if not sent.was_refused]
        for sent in taken:
            self._check(sent)
        assert not any(sent.answer.entered.is_set() for sent in self.sent if sent.was_refused)
        assert all(answer.outputs for answer in self.busy)
        check_counts(self.bench, len(taken) + len(self.busy))

    def _check(self, sent: _Sent) -> None:
        if sent.was_forgotten and not sent.answer.entered.is_set():
            return
        assert sent.answer.entered.is_set(), "closing waits for every answer"
        if isinstance(sent.answer.error, DeadlineError):
            assert sent.pending.expires < math.inf
        else:
            check_answer(sent.wanted, sent.answer)

    def _scheduler(self, sent: _Sent) -> Any:
        return sent.pending.request.plan.model.scheduler


class InlineSchedules(Schedules):
    """A scheduler whose batches are run by whoever brings the requests, as they take no time."""

    options = SchedulingOptions()


class TwoInstances(Schedules):
    """Two batches at the same time, and bounds of our own."""

    options = SchedulingOptions(instances=2, max_batch_size=5, batch_delay=1e-9)


_SETTINGS = settings(max_examples=25, stateful_step_count=40, deadline=None)
Schedules.TestCase.settings = _SETTINGS
InlineSchedules.TestCase.settings = _SETTINGS
TwoInstances.TestCase.settings = _SETTINGS
TestSchedules = Schedules.TestCase
TestInlineSchedules = InlineSchedules.TestCase
TestTwoInstances = TwoInstances.TestCase


@settings(max_examples=20, deadline=None)
@given(
    schedules=st.lists(
        st.lists(wanted_requests(), min_size=1, max_size=10), min_size=2, max_size=4
    ),
    instances=st.integers(1, 2),
)
def test_threads_that_bring_requests_at_the_same_time(
    schedules: list[list[Wanted]], instances: int
) -> None:
    bench = Bench(Path(ROOT.name), Environment(SchedulingOptions(instances=instances)))
    answers: list[list[tuple[Wanted, Answer]]] = [[] for _ in schedules]
    problems: list[ServingError] = []
    # A reader is for one thread.
    prepared = [
        [(wanted, bench.pending(wanted.message, Answer())) for wanted in schedule]
        for schedule in schedules
    ]
    start = threading.Barrier(len(schedules))

    def bring(requests: list[tuple[Wanted, PendingRequest]], done: list[Any]) -> None:
        start.wait(60)
        for wanted, pending in requests:
            try:
                pending.request.plan.model.scheduler.submit(pending)
            except ServingError as error:
                problems.append(error)
            done.append((wanted, pending.reply))
            bench.run(wanted.model)

    threads = [
        threading.Thread(target=bring, args=(requests, done), daemon=True)
        for requests, done in zip(prepared, answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    bench.close()
    assert problems == []
    for done in answers:
        for wanted, answer in done:
            assert answer.entered.is_set()
            check_answer(wanted, answer)
    check_counts(bench, sum(map(len, schedules)))
