"""Memory of large messages that goes back to the system."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable

__all__ = ["LARGE_BYTES", "MemoryReturn"]

LARGE_BYTES = 2**26
"""From how many bytes of requests on it is worth it."""

_QUIET = 30.0
"""Seconds without such requests after which it is done: while they come, they need the memory, and
each time it is done costs all others tens of milliseconds."""


class MemoryReturn:
    """Has the allocator give back what it keeps, some time after large requests were there.

    gRPC receives a message in small parts, each of which the allocator keeps when it is freed, as
    long as anything behind it is in use: of messages of 500 MB more than 1 GB stayed. To give it
    back takes up to a tenth of a second, in which threads that need memory wait, and so all calls.
    """

    def __init__(self, trim: Callable[[], object] | None = None, quiet: float = _QUIET) -> None:
        """Starts a thread that waits for large requests.

        Args:
          trim: gives memory back; None for what the C library has, and nothing where it has none.
          quiet: the seconds to wait after the last large request.
        """
        self._trim = trim or _trim
        self._quiet = quiet
        self._last = 0.0
        self._is_due = threading.Event()
        threading.Thread(target=self._run, name="memory return", daemon=True).start()

    def note(self) -> None:
        """Says that there was a large request just now."""
        self._last = time.monotonic()
        self._is_due.set()

    def _run(self) -> None:
        while self._is_due.wait():
            self._is_due.clear()
            while (left := self._last + self._quiet - time.monotonic()) > 0:
                time.sleep(left)
                self._is_due.clear()  # before the next look at when the last one was
            self._trim()


def _trim() -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
