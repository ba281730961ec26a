"""How long batches of a model take: an estimate from those that ran."""

from __future__ import annotations

__all__ = ["BatchCost"]

_WARM_UP = 8
"""Batches before there is an estimate; the very first one counts for nothing, since it made memory
and threads ready."""

_DECAY = 0.98
"""What a measurement still weighs when the next one comes."""

_OUTLIER = 4.0
"""Times the estimate, beyond which a batch tells of something else that the machine did."""

_HAND_OVER_SECONDS = 2e-4
"""What it takes to wake a thread for a batch, and to have two at work on Python's part of it."""


class BatchCost:
    """A straight line through sizes and times: a share for the batch, and one for each byte.

    The line is the least squares' of the latest batches, older ones counting for less. Whoever
    shares one guards it with a lock.
    """

    def __init__(self) -> None:
        self._count = -1
        self._weight = self._size = self._seconds = self._square = self._product = 0.0
        self._per_batch: float | None = None
        self._per_byte = 0.0

    @property
    def is_known(self) -> bool:
        """Returns whether there is an estimate."""
        return self._per_batch is not None

    @property
    def worth(self) -> float | None:
        """Returns by how many bytes to pad, at most, for a request more in a batch, or None.

        They take half as long as to have a batch at all: a request that is left behind may find
        others that are closer to it, and so not have one to itself either.
        """
        if self._per_batch is None or self._per_byte <= 0:
            return None
        return self._per_batch / self._per_byte / 2

    def pays_alone(self, size: float) -> bool:
        """Returns whether `size` bytes are worth a batch, and a thread, of their own."""
        return self._per_byte * size > max(self._per_batch or 0.0, _HAND_OVER_SECONDS)

    def seconds(self, size: float) -> float:
        """Returns how long a batch of `size` bytes takes; 0 if that is not known."""
        return 0.0 if self._per_batch is None else self._per_batch + self._per_byte * size

    def add(self, size: int, seconds: float) -> None:
        """Takes a measurement.

        Args:
          size: of the batch's inputs, padding included, in bytes.
          seconds: how long it took.
        """
        self._count += 1
        if not self._count:
            return
        if self._per_batch is not None:
            seconds = min(seconds, _OUTLIER * self.seconds(size))
        self._weight = self._weight * _DECAY + 1
        self._size = self._size * _DECAY + size
        self._seconds = self._seconds * _DECAY + seconds
        self._square = self._square * _DECAY + size * size
        self._product = self._product * _DECAY + size * seconds
        if self._count >= _WARM_UP:
            self._estimate()

    def _estimate(self) -> None:
        size, seconds = self._size / self._weight, self._seconds / self._weight
        variance = self._square / self._weight - size * size
        if variance <= (0.05 * size) ** 2:
            # All were of about one size: how much of it is the batch's share cannot be told.
            self._per_batch = min(self._per_batch or 0.0, seconds)
            self._per_byte = (seconds - self._per_batch) / size if size else 0.0
            return
        slope = (self._product / self._weight - size * seconds) / variance
        # Neither share is negative, whatever noise and rounding say.
        self._per_byte = min(max(slope, 0.0), seconds / size)
        self._per_batch = max(seconds - self._per_byte * size, 0.0)
