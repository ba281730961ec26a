"""A network between clients and a server that can be made to fail."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType

_PIECE = 65536


class Proxy:
    """Forwards connections to a server, while a `with` block runs.

    Attributes:
      address: HOST:PORT, for clients.
      is_stalled: whether clients read nothing any more of what the server sends.
      bytes_per_second: how fast clients send; 0 for as fast as they can.
    """

    def __init__(self, server: str) -> None:
        host, port = server.rsplit(":", 1)
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_stalled = False
        self.bytes_per_second = 0
        self._is_closed = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)

    def cut(self) -> None:
        """Ends all connections at once, with a reset, as when a machine dies."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for item in sockets:
            with contextlib.suppress(OSError):
                item.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                item.shutdown(socket.SHUT_RD)
            item.close()

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_closed = True
        self.is_stalled = False
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            # A small buffer, so that the server soon notices who does not read.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE)
            server = socket.create_connection(self._server)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
            with self._lock:
                self._sockets += [client, server]
            for source, target, is_upward in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._forward, args=(source, target, is_upward), daemon=True
                ).start()

    def _forward(self, source: socket.socket, target: socket.socket, is_upward: bool) -> None:
        with contextlib.suppress(OSError):
            while True:
                while self.is_stalled and not is_upward:
                    time.sleep(0.01)
                rate = self.bytes_per_second if is_upward else 0
                data = source.recv(min(_PIECE, max(1, rate // 20)) if rate else _PIECE)
                if not data:
                    break
                target.sendall(data)
                if rate:
                    time.sleep(len(data) / rate)
            target.shutdown(socket.SHUT_WR)
