"""Waits for many connections at once, in one thread."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

from slipway.bench.http2_client import Reply

__all__ = ["Connection", "Poll", "ahead_of_others", "without_collection"]

_AHEAD = 10
"""How much higher a priority is, as setpriority(2) counts."""


class Connection(Protocol):
    """What calls a server; `GrpcConnection` says how."""

    @property
    def blocked(self) -> bool: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def send(self, token: object, message: bytes, timeout: float | None = None) -> None: ...
    def receive(self) -> list[Reply]: ...
    def flush(self) -> None: ...


class Poll:
    """Waits for connections, which it closes at the end of a `with` block."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = {connection.fileno(): connection for connection in connections}
        self._epoll = select.epoll()
        self._blocked: set[int] = set()
        for number in self._connections:
            self._epoll.register(number, select.EPOLLIN)

    def __enter__(self) -> Poll:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()
        for connection in self._connections.values():
            connection.close()

    def watch(self, connection: Connection) -> None:
        """Call it after each use: a connection that is blocked is written to when it can be."""
        number = connection.fileno()
        if connection.blocked == (number in self._blocked):
            return
        if connection.blocked:
            self._blocked.add(number)
            self._epoll.modify(number, select.EPOLLIN | select.EPOLLOUT)
        else:
            self._blocked.discard(number)
            self._epoll.modify(number, select.EPOLLIN)

    def wait(self, seconds: float) -> Iterator[tuple[Connection, list[Reply]]]:
        """Yields the connections at which something arrived within `seconds`, and what it ended."""
        # An epoll waits for whole milliseconds, a select of it for microseconds.
        if seconds < 0.05 and not select.select([self._epoll], [], [], max(0.0, seconds))[0]:
            return
        for number, event in self._epoll.poll(max(0.0, seconds)):
            connection = self._connections[number]
            if event & select.EPOLLOUT:
                connection.flush()
            if event & ~select.EPOLLOUT:
                yield connection, connection.receive()
            else:
                self.watch(connection)


class ahead_of_others:
    """Lets a block run before what else wants a processor, where the system allows that.

    Else the time that this thread waits for one is measured as latency of the server.
    """

    def __enter__(self) -> None:
        self._thread = threading.get_native_id()
        self._usual = os.getpriority(os.PRIO_PROCESS, self._thread)
        self._set(self._usual - _AHEAD)

    def __exit__(self, *_: object) -> None:
        self._set(self._usual)

    def _set(self, priority: int) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._thread, priority)


class without_collection:
    """Keeps Python's collector of cycles, which would be measured as latency, out of a block."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
