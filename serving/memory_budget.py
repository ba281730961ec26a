"""The memory that requests may take in the server."""

from __future__ import annotations

import threading
from collections.abc import Callable

from slipway.serving.errors import OverloadedError, ResourceExhaustedError
from slipway.serving.memory_return import LARGE_BYTES
from slipway.serving.wire import MAX_MESSAGE_SIZE

__all__ = ["MemoryBudget"]


class MemoryBudget:
    """Bounds the bytes of all requests that are in the server, and of answers that clients have not
    read. Safe for several threads."""

    def __init__(self, limit: int, on_large: Callable[[], None] = lambda: None) -> None:
        """Makes one that nothing is taken of.

        Args:
          limit: how many bytes there may be.
          on_large: called when some of so many bytes go that their memory is worth a thought.
        """
        self._limit = limit
        self._on_large = on_large
        self._used = 0
        self._lock = threading.Lock()

    @property
    def limit(self) -> int:
        """Returns how many bytes there may be."""
        return self._limit

    @property
    def used(self) -> int:
        """Returns how many bytes there are."""
        return self._used

    def take(self, size: int, freed: int = 0) -> None:
        """Takes `size` bytes, and gives back those that are freed for them.

        One request alone may have more than the limit, but not what no message can hold.

        Args:
          size: of a request.
          freed: bytes of requests that it takes the place of; they stay taken if it raises.

        Raises:
          ResourceExhaustedError: it is of that size, which it can be in shared memory.
          OverloadedError: there is no room at present.
        """
        if size > max(self._limit, MAX_MESSAGE_SIZE):
            raise ResourceExhaustedError(
                f"the request's tensors have {size} bytes, and the server may hold {self._limit} "
                "of requests: send a smaller batch"
            )
        with self._lock:
            others = self._used - freed
            if others and others + size > self._limit:
                raise OverloadedError(
                    f"the server holds {self._used} bytes of requests and of answers that were not "
                    f"read, and may hold {self._limit}: try again when some are answered",
                    retry_after=0.1,
                )
            self._used = others + size

    def add(self, size: int) -> None:
        """Counts `size` bytes that are there in any case."""
        with self._lock:
            self._used += size

    def give_back(self, size: int) -> None:
        """Returns what `take` took, or `add` counted."""
        with self._lock:
            is_large = self._used >= LARGE_BYTES
            self._used -= size
        if is_large:
            self._on_large()

    def pass_over(self, size: int) -> None:
        """Tells of `size` bytes that have come, and may go without being taken."""
        if size >= LARGE_BYTES:
            self._on_large()
