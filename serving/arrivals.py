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
        # Released by whoever calls the receiving thread back: one call of the system, where an
        # `Event` takes several and a lock of its own.
        self._rest = threading.Lock()
        self._rest.acquire()
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
        """Takes in what has arrived, in a thread that has ended a batch and wants another.

        While requests are refused, that is left to the receiving thread: it looks often then, and
        goes before those that run batches.
        """
        if not self.is_refusing:
            self._receive()

    def await_more(self) -> None:
        """Has the receiving thread do it again, as the calling thread has nothing to run."""
        with self._lock:
            if self._rest.locked():
                self._rest.release()

    def note_refusal(self) -> None:
        """Notes that there is more than can be run, so that the receiving thread rests for less."""
        self._last_refusal = time.monotonic()

    @property
    def is_refusing(self) -> bool:
        """Returns whether requests are being refused, for there are more than can be run."""
        return time.monotonic() < self._last_refusal + _REFUSING_SECONDS

    @property
    def are_taken_in(self) -> bool:
        """Returns whether every processor runs a batch, and whoever ends one takes in what came."""
        return self._running >= self._processors and not self.is_refusing

    def rest(self) -> None:
        """Waits for a moment, in the receiving thread, if every processor runs a batch."""
        if self._running >= self._processors:
            self._rest.acquire(blocking=False)  # what was wanted before has been taken in
            self._rest.acquire(timeout=_SHORT_REST_SECONDS if self.is_refusing else _REST_SECONDS)
