from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from slipway.serving.errors import DeadlineError, ServingError
from slipway.serving.inference import InferenceFrontend
from slipway.serving.model import Environment
from slipway.serving.wire_call import WireCall
from slipway.tests.serving.scheduling import Answer, Bench, affine, small_request


class Call(Answer):
    """An Answer with what else the front end takes of a call."""

    deadline = math.inf
    on_cancel: Callable[[], None]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, Environment())
    yield made
    made.repository.close()


@pytest.fixture
def frontend(bench: Bench) -> Iterator[InferenceFrontend]:
    made = InferenceFrontend(bench.repository)
    made.is_open = True
    yield made
    made.close()


def test_what_a_thread_received_between_batches_is_run_by_another(
    frontend: InferenceFrontend,
) -> None:
    call = Call()
    frontend.on_request(cast(WireCall, call), affine())
    frontend.on_received()
    call.wait()
    assert call.outputs["y"].tolist() == [[6, 22, 38]]
    assert call.thread is not threading.current_thread()


def test_a_call_whose_client_goes_leaves_the_queue(
    bench: Bench, frontend: InferenceFrontend
) -> None:
    call = Call()
    frontend.on_request(cast(WireCall, call), affine())
    scheduler = bench.model("affine").scheduler
    assert scheduler.queued[0] == 1
    call.on_cancel()
    assert scheduler.queued == (0, 0)


def test_a_call_whose_client_has_gone_already_is_not_queued(
    bench: Bench, frontend: InferenceFrontend
) -> None:
    call = Call()
    call.cancelled = True
    frontend.on_request(cast(WireCall, call), affine())
    assert bench.model("affine").scheduler.queued == (0, 0)
    assert bench.memory.used == 0


def test_a_request_ends_with_its_call_or_its_timeout(frontend: InferenceFrontend) -> None:
    with pytest.raises(DeadlineError):
        frontend.take(affine(), Answer(), time.monotonic() - 1)
    answer = Answer()
    frontend.take(affine(timeout=1), answer, math.inf)  # a microsecond
    answer.wait()
    assert isinstance(answer.error, DeadlineError)


def test_what_is_not_taken_on_is_counted_by_its_model(
    bench: Bench, frontend: InferenceFrontend
) -> None:
    for message in (affine(rows=9), small_request("affine").replace(b"affine", b"nobody")):
        with pytest.raises(ServingError):
            frontend.take(message, Answer(), math.inf)
    assert bench.model("affine").statistics.snapshot().codes == {"OK": 0, "INVALID_ARGUMENT": 1}
    assert frontend.refusals.codes == {"NOT_FOUND": 1}
