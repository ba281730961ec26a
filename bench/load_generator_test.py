"""The load generator, against real gRPC servers that answer, refuse, are slow or are wrong."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import hpack
import pytest

from slipway.bench.http2_client import (
    DEADLINE_EXCEEDED,
    NO_ANSWER,
    OK,
    GrpcConnection,
    Reply,
    call,
    framed,
)
from slipway.bench.load_generator import Caller, Request, Target, closed_loop, open_loop

PATH = "/bench.Test/Call"

Behavior = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def serving(
    behavior: Behavior, threads: int = 8, max_concurrent_streams: int = 1000
) -> Iterator[Target]:
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", max_concurrent_streams),
    ]
    server = grpc.server(ThreadPoolExecutor(threads), options=options)
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(behavior)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Test", {"Call": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Target(f"127.0.0.1:{port}", PATH)
    server.stop(None).wait()


def echoed(message: bytes) -> Request:
    return Request(framed(message), lambda reply: reply.status == OK and reply.message == message)


@pytest.mark.parametrize("size", [0, 1, 16_384, 100_000, 3_000_000])
def test_messages_of_any_size_come_back_whole(size: int) -> None:
    message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with serving(lambda data, _: data) as target:
        assert call(target.address, PATH, message) == message
        caller = Caller(target, [echoed(message), echoed(b"small")])
        load = closed_loop([caller, Caller(target, [echoed(message)])], 2, warm_up=0)
    assert not load.wrong
    assert load.rate > 0
    assert len(caller.latencies) > 1


def test_a_wrong_answer_is_not_served() -> None:
    counter = iter(range(10**9))
    with serving(lambda data, _: data if next(counter) % 2 else b"wrong") as target:
        load = closed_loop([Caller(target, [echoed(b"right")])], 2, warm_up=0)
    assert load.wrong["a wrong answer of 5 bytes"] > 0
    assert abs(load.wrong.total() - len(load.latencies)) <= 1


def test_a_failed_call_says_why() -> None:
    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such thing")

    with serving(refuse) as target:
        load = closed_loop([Caller(target, [echoed(b"")])], 1, warm_up=0)
        with pytest.raises(RuntimeError, match="no such thing"):
            call(target.address, PATH, b"")
    assert load.rate == 0
    assert set(load.wrong) == {"status 3: no such thing"}


def test_an_open_loop_sends_at_its_rate_whatever_the_server_does() -> None:
    with serving(lambda data, _: data) as target:
        load = open_loop(target, [echoed(b"a"), echoed(b"b")], rate=200, seconds=2, connections=4)
    assert 300 < load.sent < 500
    assert len(load.good) == load.sent
    assert not load.wrong and not load.lost and not load.refused


def test_an_open_loop_that_sends_late_takes_every_answer_when_it_comes() -> None:
    class Slow(GrpcConnection):
        def send(self, token: object, message: bytes, timeout: float | None = None) -> None:
            time.sleep(0.02)
            super().send(token, message, timeout)

    with serving(lambda data, _: data) as target:
        load = open_loop(
            Target(target.address, target.path, Slow),
            [echoed(b"a")],
            rate=1000,
            seconds=0.2,
            connections=1,
            deadline=2,
            patience=1,
        )
    assert load.lags[-1] > 3.2  # later than the patience with a loop that is not late
    assert load.good and load.late
    assert len(load.good) + len(load.late) == load.sent


def test_an_open_loop_tells_refused_from_expired_and_lost() -> None:
    hold = threading.Event()

    def behave(data: bytes, context: grpc.ServicerContext) -> bytes:
        if data == b"refuse":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        if data == b"hold":
            hold.wait(60)
        return data

    mixed = [echoed(data) for data in (b"good", b"refuse", b"hold")]
    with serving(behave, threads=64) as target:
        load = open_loop(target, mixed, rate=30, seconds=1, connections=2, deadline=0.5, patience=1)
        found = (len(load.good), len(load.refused), load.expired, load.lost)
        without_deadline = open_loop(
            target, [echoed(b"hold")], rate=10, seconds=1, connections=1, patience=0.2
        )
        hold.set()
    assert sum(found) == load.sent
    assert min(found[:3]) > 0
    assert load.lost == 0
    assert without_deadline.lost == without_deadline.sent > 0


def test_the_status_of_a_reset_stream_is_none_of_grpcs() -> None:
    assert NO_ANSWER not in {code.value[0] for code in grpc.StatusCode}


@contextmanager
def allowing(streams: int) -> Iterator[tuple[GrpcConnection, socket.socket]]:
    """Yields a connection that knows how many streams it may have, and its server's end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = GrpcConnection(f"127.0.0.1:{listening.getsockname()[1]}", PATH)
        server, _ = listening.accept()
    with server:
        # A SETTINGS frame (RFC 9113, 6.5) with MAX_CONCURRENT_STREAMS.
        server.sendall(struct.pack(">IBIHI", 6 << 8 | 4, 0, 0, 3, streams))
        assert receive(client) == []
        yield client, server
    client.close()


def receive(client: GrpcConnection) -> list[Reply]:
    assert select.select([client.socket], [], [], 30)[0]
    return client.receive()


def reset(server: socket.socket, stream: int, code: int) -> None:
    """Sends a RST_STREAM frame (RFC 9113, 6.4)."""
    server.sendall(struct.pack(">IBII", 4 << 8 | 3, 0, stream, code))


def streams_begun(server: socket.socket) -> list[int]:
    """Returns the streams of the HEADERS frames (RFC 9113, 6.2) that have come since."""
    data = server.recv(2**16).removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    begun = []
    while data:
        length_and_kind, _, stream = struct.unpack_from(">IBI", data)
        if length_and_kind & 0xFF == 1:
            begun.append(stream)
        data = data[9 + (length_and_kind >> 8) :]
    return begun


def test_no_more_calls_are_under_way_than_the_server_allows() -> None:
    with allowing(streams=2) as (client, server):
        for name in "abcd":
            client.send(name, framed(b""))
        assert streams_begun(server) == [1, 3]
        reset(server, 3, code=8)
        assert receive(client) == [Reply("b", NO_ANSWER, b"stream reset: CANCEL")]
        assert streams_begun(server) == [5]


def test_a_call_that_the_server_did_not_begin_is_repeated_once() -> None:
    with allowing(streams=2) as (client, server):
        client.send("a", framed(b""))
        reset(server, 1, code=7)
        assert receive(client) == []
        assert streams_begun(server) == [1, 3]
        reset(server, 3, code=7)
        assert receive(client) == [Reply("a", NO_ANSWER, b"stream reset: REFUSED_STREAM")]


def test_a_success_without_a_message_is_no_answer() -> None:
    block = hpack.Encoder().encode([(":status", "200"), ("grpc-status", "0")])
    with allowing(streams=2) as (client, server):
        client.send("a", framed(b""))
        # A HEADERS frame (RFC 9113, 6.2) that ends its headers and the stream.
        server.sendall(struct.pack(">IBI", len(block) << 8 | 1, 0x4 | 0x1, 1) + block)
        (reply,) = receive(client)
    assert reply.status == NO_ANSWER
    assert b"not one uncompressed message" in reply.message


def test_a_call_whose_deadline_passes_before_it_is_sent_is_not_sent() -> None:
    received: list[bytes] = []

    def hold(data: bytes, _: grpc.ServicerContext) -> bytes:
        received.append(data)
        time.sleep(1)
        return data

    with serving(hold, max_concurrent_streams=1) as target:
        connection = target.connection()
        time.sleep(0.5)
        assert connection.receive() == []  # but it knows now how many there may be
        for name, timeout in ((b"a", None), (b"b", 0.5), (b"c", None)):
            connection.send(name, framed(name), timeout)
        replies: list[Reply] = []
        end = time.monotonic() + 30
        while len(replies) < 3 and time.monotonic() < end:
            time.sleep(0.05)
            replies += connection.receive()
        connection.close()
    assert received == [b"a", b"c"]
    statuses = {reply.token: reply.status for reply in replies}
    assert statuses == {b"a": OK, b"b": DEADLINE_EXCEEDED, b"c": OK}
