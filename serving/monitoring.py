"""A small HTTP server for people, for Prometheus and for probes: pages to read, nothing to change.

It is for trusted networks and takes no load: each connection has a thread and serves one request.
Clients that are slow, or never send anything, hold up nobody: there may be so many connections, and
one more closes the oldest.
"""

from __future__ import annotations

import contextlib
import http
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from slipway.serving.errors import StartupError

__all__ = ["MonitoringServer", "Page", "Response"]

_LOGGER = logging.getLogger(__name__)

_MAX_CONNECTIONS = 32
_TIMEOUT_SECONDS = 5.0

_HEADERS = {
    "Cache-Control": "no-store",
    # Nothing from anywhere but this server, and nothing that is written into the page.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Response:
    """What a page is.

    Attributes:
      body: its bytes.
      content_type: its media type.
      status: of HTTP.
    """

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: http.HTTPStatus = field(default=http.HTTPStatus.OK)


Page = Callable[["Message[str, str]"], Response]
"""Makes a page for a request with these headers."""


class MonitoringServer:
    """Serves pages over HTTP until it is closed."""

    def __init__(self, host: str, port: int, pages: Mapping[str, Page]) -> None:
        """Listens, and serves from a thread of its own.

        Args:
          host: a name or address of this machine.
          port: 0 for any that is free.
          pages: by their path.

        Raises:
          StartupError: the address cannot be had.
        """
        bracketed = f"[{host}]" if ":" in host else host
        try:
            self._server = _Server(host, port, pages)
        except OSError as error:
            raise StartupError(
                f"cannot listen on {bracketed}:{port} for metrics: {error.strerror}; "
                "--metrics-port takes another port, 0 for any that is free; --no-metrics "
                "does without",
                exit_code=1,
            ) from error
        self.address = f"{bracketed}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="monitoring", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops; responses that are under way are cut off."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = _MAX_CONNECTIONS

    def __init__(self, host: str, port: int, pages: Mapping[str, Page]) -> None:
        self.pages = pages
        self._connections: dict[socket.socket, None] = {}  # in the order in which they came
        self._lock = threading.Lock()
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self.address_family = family
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # The standard one looks up the host's name, which may take long. SO_REUSEPORT is not set:
        # two servers on one port would share its connections in silence.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = None
            if len(self._connections) > _MAX_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # which ends its thread
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _LOGGER.debug("a connection for metrics broke", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_SECONDS
    server_version = "slipway"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            response = Response(b"no such page\n", status=http.HTTPStatus.NOT_FOUND)
        else:
            try:
                response = page(self.headers)
            except Exception:
                _LOGGER.exception("the page %s failed", self.path.partition("?")[0])
                response = Response(
                    b"the page failed; the server's log has the cause\n",
                    status=http.HTTPStatus.INTERNAL_SERVER_ERROR,
                )
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(response.body)

    def log_message(self, format: str, *arguments: Any) -> None:
        # Whoever polls would fill the log.
        _LOGGER.debug("%s", repr(format % arguments))
