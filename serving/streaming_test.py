from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import grpc
import pytest

from slipway.serving.errors import UnavailableError
from slipway.serving.inference import InferenceFrontend
from slipway.serving.memory_budget import MemoryBudget
from slipway.serving.request_queue import Reply
from slipway.serving.streaming import InferenceStreams


class Frontend:
    """Takes requests, and leaves it to the test to answer them."""

    def __init__(self) -> None:
        self.replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()

    def take(self, message: bytes, reply: Reply, deadline: float) -> Callable[[], None]:
        self.replies.put(reply)
        return lambda: None


class Context:
    """A call without metadata or a deadline, of a client that stays."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return True

    def time_remaining(self) -> float | None:
        return None

    def is_active(self) -> bool:
        return True


class Client:
    """Sends one request, and ends the stream when it is told to."""

    def __init__(self) -> None:
        self.has_ended = threading.Event()
        self.readers: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()

    def messages(self) -> Iterator[bytes]:
        yield b""
        self.readers.put(threading.current_thread())
        self.has_ended.wait()


class Streams:
    """Streams whose requests the test answers."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.frontend = Frontend()
        self.streams = InferenceStreams(cast(InferenceFrontend, self.frontend), MemoryBudget(2**20))
        self._pool = pool

    def open(self, messages: Iterator[bytes]) -> Future[list[bytes]]:
        context = cast(grpc.ServicerContext, Context())
        return self._pool.submit(list, self.streams.serve(messages, context))


@pytest.fixture
def streams() -> Iterator[Streams]:
    with ThreadPoolExecutor() as pool:
        yield Streams(pool)


def test_a_stream_that_was_read_to_its_end_ends_well_though_the_server_stops(
    streams: Streams,
) -> None:
    client = Client()
    answers = streams.open(client.messages())
    reply = streams.frontend.replies.get(timeout=60)
    client.has_ended.set()
    client.readers.get(timeout=60).join()
    streams.streams.close()
    reply.respond(b"")
    assert len(answers.result(60)) == 1


def test_a_stream_whose_client_may_send_more_is_answered_and_told_that_the_server_stops(
    streams: Streams,
) -> None:
    client = Client()
    answers = streams.open(client.messages())
    reply = streams.frontend.replies.get(timeout=60)
    client.readers.get(timeout=60)
    streams.streams.close()
    reply.respond(b"")
    with pytest.raises(UnavailableError, match="the server stops: open the stream again"):
        answers.result(60)
    client.has_ended.set()


def test_a_stream_that_comes_when_the_server_stops_is_refused(streams: Streams) -> None:
    is_read = threading.Event()

    def messages() -> Iterator[bytes]:
        is_read.set()
        yield from ()

    streams.streams.close()
    with pytest.raises(UnavailableError, match="the server stops: open the stream again"):
        streams.open(messages()).result(60)
    assert not is_read.is_set()
