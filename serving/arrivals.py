"""Who takes in what arrives: the thread that receives, or those that run batches, between two."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

__all__ = ["Arrivals"]

_REST_SECONDS = 2e-3
"""How long the receiving thread leaves alone what arrives while every processor runs a batch."""

_SHORT_REST_SECONDS = 5e-4
"""The same while requests are refused: those need not wait for the end of a batch."""

_REFUSING_SECONDS = 0.1
"""How long after a refusal another is to be expected."""


def _nothing() -> None:
    pass


class Arrivals:
    """Keeps the receiving thread from interrupting batches while all processors run some.

    It would be woken for every message, and each time take a processor from a batch, for a request
    that has to wait for the end of one anyway. So it rests meanwhile, for a moment at a time, and a
    thread that ends a batch takes in what has arrived before it makes the next one.

    Safe for several threads.
    """

    def __init__(self, processors: int) -> None:
        """Makes one for a process with so many processors."""
        self._processors = processors
        self._running = 0
        self._last_refusal = -math.inf
        self._lock = threading.Lock()
        self._is_wanted = threading.Event()
        self._receive: Callable[[], None] = _nothing

    def connect(self, receive: Callable[[], None]) -> None:
        """Has `receive` called by `take_in`; it must not wait."""
        self._receive = receive

    def begin(self) -> None:
        """Counts a batch as being run."""
        with self._lock:
            self._running += 1

    def end(self) -> None:
        """Takes back `begin`."""
        with self._lock:
            self._running -= 1

    def take_in(self) -> None:
        """Takes in what has arrived, in a thread that has ended a batch and wants another."""
        self._receive()

    def await_more(self) -> None:
        """Has the receiving thread do it again, as the calling thread has nothing to run."""
        self._is_wanted.set()

    def note_refusal(self) -> None:
        """Has the receiving thread rest for less, since there is more than can be run."""
        self._last_refusal = time.monotonic()

    def rest(self) -> None:
        """Waits for a moment, in the receiving thread, if every processor runs a batch."""
        if self._running >= self._processors:
            is_refusing = time.monotonic() < self._last_refusal + _REFUSING_SECONDS
            self._is_wanted.clear()
            self._is_wanted.wait(_SHORT_REST_SECONDS if is_refusing else _REST_SECONDS)
