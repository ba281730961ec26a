from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from slipway.serving.arrivals import Arrivals
from slipway.serving.authorization import Authorizer
from slipway.serving.errors import ResourceExhaustedError
from slipway.serving.memory_budget import MemoryBudget
from slipway.serving.transport import InferenceTransport
from slipway.serving.wire_call import WireCall

METHOD = "/service/Echo"


class Echo:
    """A server that answers with what it gets, and fails after it has received calls."""

    def __init__(self) -> None:
        self.arrivals = Arrivals(1)
        self.receivers: list[threading.Thread] = []
        server = grpc.server(ThreadPoolExecutor(1))
        port = server.add_insecure_port("127.0.0.1:0")
        self.transport = InferenceTransport(
            server,
            {METHOD: self._answer},
            METHOD,
            lambda: time.time() + 1,
            self._fail,
            lambda: ResourceExhaustedError("too much"),
            Authorizer(),
            self.arrivals,
            MemoryBudget(2**20),
        )
        self.transport.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def _answer(self, call: WireCall, message: bytes) -> None:
        self.receivers.append(threading.current_thread())
        call.respond(message)

    def _fail(self) -> None:
        raise RuntimeError("the model cannot be woken")


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    with made.channel:
        yield made
        assert made.transport.stop(0).wait(60)


def test_what_fails_after_receiving_is_logged_and_ends_no_thread_that_runs_batches(
    echo: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    call = echo.channel.unary_unary(METHOD)
    echo.arrivals.begin()  # as if the only processor ran a batch
    # The receiving thread comes first now and then.
    for _ in range(100):
        answer = call.future(b"message", timeout=60)
        while not answer.done():
            echo.arrivals.take_in()
        assert answer.result() == b"message"
        if echo.receivers.count(threading.current_thread()) > 1:
            break
        time.sleep(0.01)  # The receiving thread is not to wait for what comes, with the turn.
    echo.arrivals.end()
    assert echo.receivers.count(threading.current_thread()) > 1
    record = next(item for item in caplog.records if item.name == "slipway.serving.transport")
    assert record.getMessage() == "cannot take in what has arrived"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the model cannot be woken"
