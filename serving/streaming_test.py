from __future__ import annotations

import gc
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar, cast

import grpc
import pytest

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving import streaming
from slipway.serving.errors import ResourceExhaustedError, UnavailableError
from slipway.serving.inference import InferenceFrontend
from slipway.serving.memory_budget import MemoryBudget
from slipway.serving.request_queue import Reply
from slipway.serving.streaming import MAX_STREAMS, InferenceStreams

BOUND = 10
"""Seconds, after which what is waited for is taken never to come."""

_T = TypeVar("_T")


def in_thread(function: Callable[[], _T]) -> Future[_T]:
    """Calls a function in a thread that ends with the process, should it wait for ever."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Frontend:
    """Takes requests, and leaves it to the test to answer them."""

    def __init__(self) -> None:
        self.replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self.forgotten: queue.SimpleQueue[Reply] = queue.SimpleQueue()

    def take(self, message: bytes, reply: Reply, deadline: float) -> Callable[[], None]:
        self.replies.put(reply)
        return lambda: self.forgotten.put(reply)


class Context:
    """A call without metadata or a deadline, of a client that stays until it is told to go."""

    def __init__(self) -> None:
        self.go: Callable[[], None] = lambda: None

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.go = callback
        return True

    def time_remaining(self) -> float | None:
        return None

    def is_active(self) -> bool:
        return True


class Client:
    """Sends requests, and ends the stream when it is told to."""

    def __init__(self, requests: int = 1) -> None:
        self._requests = requests
        self.has_ended = threading.Event()
        self.readers: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()

    def messages(self) -> Iterator[bytes]:
        yield from [b""] * self._requests
        self.readers.put(threading.current_thread())
        self.has_ended.wait(BOUND)


class Streams:
    """Streams whose requests the test answers."""

    def __init__(self) -> None:
        self.frontend = Frontend()
        self.memory = MemoryBudget(2**20)
        self.streams = InferenceStreams(cast(InferenceFrontend, self.frontend), self.memory)

    def serve(self, messages: Iterator[bytes]) -> Generator[bytes, None, None]:
        self.context = Context()
        context = cast(grpc.ServicerContext, self.context)
        return cast(Generator[bytes, None, None], self.streams.serve(messages, context))

    def open(self, messages: Iterator[bytes]) -> Future[list[bytes]]:
        return in_thread(lambda: list(self.serve(messages)))

    def answer_next(self, message: bytes) -> None:
        """Has the next request that comes, or waits, answered by another thread."""
        in_thread(lambda: self.frontend.replies.get(timeout=BOUND).respond(message))


@pytest.fixture
def streams() -> Streams:
    return Streams()


def test_a_stream_that_was_read_to_its_end_ends_well_though_the_server_stops(
    streams: Streams,
) -> None:
    client = Client()
    answers = streams.open(client.messages())
    reply = streams.frontend.replies.get(timeout=BOUND)
    client.has_ended.set()
    client.readers.get(timeout=BOUND).join(BOUND)
    streams.streams.close()
    reply.respond(b"")
    assert len(answers.result(BOUND)) == 1


def test_a_stream_whose_client_may_send_more_is_answered_and_told_that_the_server_stops(
    streams: Streams,
) -> None:
    client = Client()
    answers = streams.open(client.messages())
    reply = streams.frontend.replies.get(timeout=BOUND)
    client.readers.get(timeout=BOUND)
    streams.streams.close()
    reply.respond(b"")
    with pytest.raises(UnavailableError, match="the server stops: open the stream again"):
        answers.result(BOUND)
    client.has_ended.set()


def test_a_stream_that_comes_when_the_server_stops_is_refused(streams: Streams) -> None:
    is_read = threading.Event()

    def messages() -> Iterator[bytes]:
        is_read.set()
        yield from ()

    streams.streams.close()
    with pytest.raises(UnavailableError, match="the server stops: open the stream again"):
        streams.open(messages()).result(BOUND)
    assert not is_read.is_set()


def test_answers_count_as_memory_until_they_are_read(streams: Streams) -> None:
    client = Client(requests=3)
    answers = streams.serve(client.messages())

    def answer(message: bytes) -> bytes:
        """Returns the next response, of a request that is answered with `message`."""
        streams.answer_next(message)
        return in_thread(lambda: next(answers)).result(BOUND)

    sizes = []
    for size in (100, 1000):
        sizes.append(len(answer(bytes(size))))
        assert streams.memory.used == sizes[-1]  # whoever asks for the next has read the last
    answers.close()
    assert streams.memory.used == 0
    streams.frontend.replies.get(timeout=BOUND).respond(bytes(100))  # for nobody
    assert streams.memory.used == 0
    client.has_ended.set()


def test_no_more_requests_are_read_than_may_be_under_way(streams: Streams) -> None:
    client = Client(requests=300)
    answers = streams.open(client.messages())
    replies = [streams.frontend.replies.get(timeout=BOUND) for _ in range(256)]
    with pytest.raises(queue.Empty):
        streams.frontend.replies.get(timeout=0.1)
    replies[0].respond(b"")
    replies.append(streams.frontend.replies.get(timeout=BOUND))
    for reply in replies[1:]:
        reply.respond(b"")
    for _ in range(300 - len(replies)):
        streams.frontend.replies.get(timeout=BOUND).respond(b"")
    client.has_ended.set()
    assert len(answers.result(BOUND)) == 300


def test_a_client_that_goes_has_its_requests_forgotten(streams: Streams) -> None:
    client = Client(requests=300)
    answers = streams.open(client.messages())
    replies = [streams.frontend.replies.get(timeout=BOUND) for _ in range(256)]
    readers = [thread for thread in threading.enumerate() if thread.name.endswith("(_read)")]
    streams.context.go()
    assert answers.result(BOUND) == []
    forgotten = [streams.frontend.forgotten.get(timeout=BOUND) for _ in replies]
    assert set(forgotten) == set(replies)
    for reader in readers:  # which waited for room
        reader.join(BOUND)
        assert not reader.is_alive()


def test_a_request_is_forgotten_whose_client_goes_while_it_is_taken_on(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(message: bytes, reply: Reply, deadline: float) -> Callable[[], None]:
        streams.context.go()
        return lambda: streams.frontend.forgotten.put(reply)

    monkeypatch.setattr(streams.frontend, "take", take)
    client = Client()
    assert streams.open(client.messages()).result(BOUND) == []
    streams.frontend.forgotten.get(timeout=BOUND)
    client.has_ended.set()


def test_nothing_is_taken_on_for_a_client_that_has_gone_before(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "add_callback", lambda *_: False)
    answers = streams.open(iter([b""]))
    with pytest.raises(queue.Empty):
        streams.frontend.replies.get(timeout=0.1)
    assert answers.result(BOUND) == []


@pytest.mark.parametrize("remaining", [None, 1000.0])
def test_requests_have_the_time_that_their_stream_has_left(
    streams: Streams, monkeypatch: pytest.MonkeyPatch, remaining: float | None
) -> None:
    deadlines = []

    def take(message: bytes, reply: Reply, deadline: float) -> Callable[[], None]:
        deadlines.append(deadline)
        reply.respond(b"")
        return lambda: None

    monkeypatch.setattr(streams.frontend, "take", take)
    monkeypatch.setattr(Context, "time_remaining", lambda _: remaining)
    before = time.monotonic()
    assert len(streams.open(iter([b""])).result(BOUND)) == 1
    if remaining is None:
        assert deadlines == [math.inf]
    else:
        assert before <= deadlines[0] - remaining <= time.monotonic()


def test_a_request_that_was_answered_is_freed_while_the_stream_goes_on(streams: Streams) -> None:
    client = Client(requests=2)
    answers = streams.open(client.messages())
    first, second = (streams.frontend.replies.get(timeout=BOUND) for _ in range(2))
    reference = weakref.ref(first)
    first.respond(b"")
    del first
    gc.collect()
    assert reference() is None
    second.respond(b"")
    client.has_ended.set()
    assert len(answers.result(BOUND)) == 2


@pytest.mark.parametrize("error", [UnavailableError("it is away"), RuntimeError("secret")])
def test_a_request_that_is_not_taken_on_is_answered_whatever_it_is(
    streams: Streams, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def take(message: bytes, reply: Reply, deadline: float) -> Callable[[], None]:
        raise error

    monkeypatch.setattr(streams.frontend, "take", take)
    # Ids, of which the second is no text.
    (good, bad) = streams.open(iter([b"\x1a\x01a", b"\x1a\x01\xff"])).result(BOUND)
    for response, identifier in ((good, "a"), (bad, "")):
        message = protocol.ModelStreamInferResponse.FromString(response)
        assert message.infer_response.id == identifier
        assert message.error_message
        assert "secret" not in message.error_message


@pytest.mark.parametrize("idle_seconds", [0.0, 60.0])
def test_the_stream_that_was_idle_for_longest_gives_way_to_another(
    streams: Streams, monkeypatch: pytest.MonkeyPatch, idle_seconds: float
) -> None:
    monkeypatch.setattr(streaming, "MAX_STREAMS", 3)
    monkeypatch.setattr(streaming, "_IDLE_SECONDS", idle_seconds)
    clients = [Client() for _ in range(4)]
    opened: list[Future[list[bytes]]] = []
    replies: list[Reply] = []
    readers: list[threading.Thread] = []
    try:
        for client in clients[:3]:
            opened.append(streams.open(client.messages()))
            replies.append(streams.frontend.replies.get(timeout=BOUND))
            readers.append(client.readers.get(timeout=BOUND))
        # The first sends no more, and has a request under way all the same.
        clients[0].has_ended.set()
        readers[0].join(BOUND)
        # All but the first are answered, the last of them before the other.
        for reply in reversed(replies[1:]):
            reply.respond(b"")
            deadline = time.monotonic() + BOUND
            while cast(Any, reply)._stream.idle_since == math.inf:
                assert time.monotonic() < deadline, "it never became idle"
                time.sleep(0.001)
        opened.append(streams.open(clients[3].messages()))
        if idle_seconds:
            with pytest.raises(ResourceExhaustedError, match="none has been idle for 60 seconds"):
                opened.pop().result(BOUND)
        else:
            with pytest.raises(UnavailableError, match="idle for longest, gives way to another: o"):
                opened.pop(2).result(BOUND)
            streams.frontend.replies.get(timeout=BOUND).respond(b"")
        assert streams.streams.open_count == 3
        replies[0].respond(b"")
    finally:
        for client in clients:
            client.has_ended.set()
    assert all(len(answers.result(BOUND)) == 1 for answers in opened)
    assert streams.streams.open_count == 0


def test_so_many_streams_may_be_open(streams: Streams) -> None:
    client = Client()

    def begin() -> Generator[bytes, None, None]:
        answers = streams.serve(client.messages())
        streams.answer_next(b"")
        in_thread(lambda: next(answers)).result(BOUND)
        return answers

    begun = [begin() for _ in range(MAX_STREAMS)]
    assert streams.streams.open_count == MAX_STREAMS
    with pytest.raises(ResourceExhaustedError, match="64 streams are open"):
        streams.open(client.messages()).result(BOUND)
    begun.pop().close()
    begun.append(begin())
    client.has_ended.set()
    for answers in begun:
        answers.close()
    assert streams.streams.open_count == 0
