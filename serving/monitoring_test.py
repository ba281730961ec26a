"""The server of pages for people and probes, and clients that misuse it."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from email.message import Message

import pytest

from slipway.serving import monitoring
from slipway.serving.monitoring import MonitoringServer, Response

BOUND = 20
"""Seconds, after which what is waited for is taken never to come."""

MOST = 32
"""Connections that there may be."""


def page(headers: Message[str, str]) -> Response:
    return Response(b"here")


@pytest.fixture
def server() -> Iterator[MonitoringServer]:
    server = MonitoringServer("127.0.0.1", 0, {"/page": page})
    yield server
    server.close()


def connect(server: MonitoringServer) -> socket.socket:
    host, port = server.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=BOUND)


def ask(connection: socket.socket, method: bytes = b"GET") -> bytes:
    """Asks for a page on an open connection, and returns what is answered."""
    connection.sendall(method + b" /page HTTP/1.0\r\n\r\n")
    return b"".join(iter(lambda: connection.recv(4096), b""))


def test_whoever_asks_for_the_headers_gets_no_more(server: MonitoringServer) -> None:
    with connect(server) as connection:
        answer = ask(connection, b"HEAD")
    assert answer.startswith(b"HTTP/1.0 200 ") and answer.endswith(b"\r\n\r\n")


def test_each_connection_too_many_closes_the_oldest(
    server: MonitoringServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring._Handler, "timeout", None)  # which would close them too
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(server)) for _ in range(MOST + 2)]
        assert [connection.recv(1) for connection in silent[:2]] == [b"", b""]
        assert all(ask(connection).endswith(b"here") for connection in silent[2:])


def test_connections_that_have_ended_close_no_other(
    server: MonitoringServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring._Handler, "timeout", None)
    with connect(server) as oldest:
        for _ in range(2 * MOST):
            with connect(server) as connection:
                assert ask(connection).endswith(b"here")
        assert ask(oldest).endswith(b"here")


def test_a_connection_that_says_nothing_is_closed(server: MonitoringServer) -> None:
    with connect(server) as silent:
        assert silent.recv(1) == b""


def test_its_end_cuts_off_what_is_under_way_and_takes_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitoring._Handler, "timeout", None)
    server = MonitoringServer("127.0.0.1", 0, {"/page": page})
    with connect(server) as silent, connect(server) as other:
        assert ask(other).endswith(b"here")  # so that the one before it has been taken
        server.close()
        assert silent.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_a_page_that_fails_is_an_error_of_ours_that_tells_no_cause() -> None:
    def fail(headers: Message[str, str]) -> Response:
        raise RuntimeError("secret")

    server = MonitoringServer("127.0.0.1", 0, {"/page": fail})
    try:
        connection = http.client.HTTPConnection(server.address, timeout=BOUND)
        connection.request("GET", "/page?query")
        response = connection.getresponse()
        assert response.status == 500
        assert response.read() == b"the page failed; the server's log has the cause\n"
        connection.close()
    finally:
        server.close()
