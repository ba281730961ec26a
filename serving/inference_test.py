from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import (
    DeadlineError,
    InternalError,
    InvalidRequestError,
    ServingError,
)
from slipway.serving.inference import InferenceFrontend
from slipway.serving.model import Environment
from slipway.serving.observation import RequestObserver
from slipway.serving.request_queue import PendingRequest
from slipway.serving.scheduler import ClosedError, Scheduler
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
    made.close()


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


def test_it_asks_to_be_called_at_once_until_all_was_run(
    frontend: InferenceFrontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = iter([True, True, False])
    monkeypatch.setattr(Scheduler, "run_pending", lambda _: next(wait))
    frontend.on_request(cast(WireCall, Call()), affine())
    now = time.time()
    assert [frontend.on_idle() > now for _ in range(4)] == [False, False, True, True]


def large(message: bytes) -> bytes:
    """Returns a request with so much that means nothing that it is not read where it arrives."""
    request = protocol.ModelInferRequest.FromString(message)
    request.parameters["padding"].string_param = "x" * 2**20
    return request.SerializeToString()


def test_a_large_message_is_read_and_run_by_others(frontend: InferenceFrontend) -> None:
    call = Call()
    frontend.on_request(cast(WireCall, call), large(affine()))
    call.wait()
    assert call.outputs["y"].tolist() == [[6, 22, 38]]


def test_what_is_wrong_with_a_large_message_is_answered(
    bench: Bench, frontend: InferenceFrontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, failed = Call(), Call()
    frontend.on_request(cast(WireCall, refused), large(affine(rows=9)))
    refused.wait()
    assert isinstance(refused.error, InvalidRequestError)
    monkeypatch.setattr(Scheduler, "submit", lambda *_: 1 / 0)
    frontend.on_request(cast(WireCall, failed), large(affine()))
    failed.wait()
    assert isinstance(failed.error, InternalError)
    codes = bench.model("affine").statistics.snapshot().codes
    assert codes == {"OK": 0, "INVALID_ARGUMENT": 1, "INTERNAL": 1}


def test_what_arrives_while_a_version_is_being_replaced_is_taken_by_the_other(
    bench: Bench, frontend: InferenceFrontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Scheduler.submit

    def submit(self: Scheduler, pending: PendingRequest) -> None:
        monkeypatch.setattr(Scheduler, "submit", original)
        bench.model("affine").scheduler.close()
        bench.replace_affine()
        original(self, pending)

    monkeypatch.setattr(Scheduler, "submit", submit)
    answer = Answer()
    frontend.take(affine(), answer, math.inf)
    answer.wait()
    assert answer.outputs["y"].tolist() == [[6, 22, 38]]


def test_what_arrives_when_nothing_replaces_a_version_that_goes_is_refused(
    bench: Bench, frontend: InferenceFrontend
) -> None:
    bench.model("affine").scheduler.close()
    with pytest.raises(ClosedError):
        frontend.take(affine(), Answer(), math.inf)


def test_what_waits_for_a_model_that_came_later_expires_in_time(
    bench: Bench, frontend: InferenceFrontend
) -> None:
    frontend.on_idle()
    bench.replace_affine()
    busy, waiting = Call(is_held=True), Call()
    frontend.on_request(cast(WireCall, busy), affine())
    frontend.on_idle()
    busy.wait()
    waiting.deadline = time.monotonic() + 0.1
    frontend.on_request(cast(WireCall, waiting), affine())
    wake = frontend.on_idle()
    # By itself it would look again after a quarter of a second.
    assert wake < time.time() + 0.15
    time.sleep(0.11)
    frontend.on_idle()
    assert isinstance(waiting.error, DeadlineError)
    busy.release()


def test_the_log_tells_of_what_is_not_taken_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slipway.access")
    frontend = InferenceFrontend(bench.repository, observer=RequestObserver(1.0, None))
    frontend.is_open = True
    message = affine(rows=9)
    with pytest.raises(InvalidRequestError):
        frontend.take(message, Answer(), math.inf)
    frontend.close()
    (line,) = [record for record in caplog.records if record.name == "slipway.access"]
    fields = vars(line)["fields"]
    named = [fields[name] for name in ("model", "version", "code", "bytes")]
    assert named == ["affine", 1, "INVALID_ARGUMENT", len(message)]


def test_whoever_brought_a_request_can_have_it_forgotten(
    bench: Bench, frontend: InferenceFrontend
) -> None:
    busy = bench.occupy()
    forget = frontend.take(affine(), Answer(), math.inf)
    assert bench.model("affine").scheduler.queued[0] == 1
    forget()
    assert bench.model("affine").scheduler.queued == (0, 0)
    busy.release()
