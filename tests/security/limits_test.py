"""Clients that want too much, send nonsense, or nothing at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from slipway.tests.security.conftest import Outcome
from slipway.tests.serving.requests import call
from slipway.tests.serving.server_process import ServerProcess

MAX_CONNECTIONS = 8


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ServerProcess]:
    flags = [
        "--max-message-bytes=10000",
        "--max-metadata-bytes=2048",
        f"--max-connections={MAX_CONNECTIONS}",
        "--handshake-seconds=1",
        "--log-level=error",
    ]
    with ServerProcess(repository, flags) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.address, options) as connection:
        yield connection


def connect(server: ServerProcess) -> socket.socket:
    host, port = server.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=60)


def await_close(connection: socket.socket) -> None:
    """Returns when the server has closed a connection, which it must."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass


def test_messages_have_a_bound(channel: grpc.Channel, outcome: Outcome) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", service_pb2.ModelInferRequest(model_name="a" * 20_000))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert outcome(channel, "ModelInfer") == "OK"


def test_answers_have_the_same_bound(repository: Path) -> None:
    request = service_pb2.ModelInferRequest(model_name="lookup")
    tokens = request.inputs.add(name="tokens", datatype="INT64", shape=[4, 16])
    mask = request.inputs.add(name="mask", datatype="BOOL", shape=[4, 16])
    # A byte for each, where the answer has nine.
    tokens.contents.int64_contents.extend([1] * 64)
    mask.contents.bool_contents.extend([True] * 64)
    assert request.ByteSize() < 400
    with (
        ServerProcess(repository, ["--max-message-bytes=400"]) as server,
        grpc.insecure_channel(server.address) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        call(channel, "ModelInfer", request)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "exceeds gRPC's byte size limit 400; send a smaller batch" in caught.value.details()


def test_metadata_has_a_bound(channel: grpc.Channel, outcome: Outcome) -> None:
    assert outcome(channel, "ModelInfer", [("name", "a" * 4000)]) == "RESOURCE_EXHAUSTED"
    assert outcome(channel, "ModelInfer", [("name", "a" * 1000)]) == "OK"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096,
        os.urandom(4096),
    ],
    ids=["http1", "tls", "http2", "random"],
)
def test_garbage_ends_its_connection_and_no_other(
    server: ServerProcess, channel: grpc.Channel, outcome: Outcome, data: bytes
) -> None:
    assert outcome(channel, "ModelInfer") == "OK"
    with connect(server) as connection:
        connection.sendall(data)
        await_close(connection)
    assert outcome(channel, "ModelInfer") == "OK"


def test_connections_that_say_nothing_are_closed(
    server: ServerProcess, outcome: Outcome, channel: grpc.Channel
) -> None:
    silent = [connect(server) for _ in range(4 * MAX_CONNECTIONS)]
    for connection in silent:
        with connection:
            await_close(connection)
    # There is room again.
    assert outcome(channel, "ModelInfer") == "OK"


def test_half_a_greeting_is_not_enough(
    server: ServerProcess, channel: grpc.Channel, outcome: Outcome
) -> None:
    with connect(server) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM")
        await_close(connection)
    assert outcome(channel, "ModelInfer") == "OK"
