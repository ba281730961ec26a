"""Histograms with fixed buckets, cheap enough to be updated for every request."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["BATCH_BOUNDS", "DURATION_BOUNDS", "Histogram", "quantile"]

DURATION_BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
)  # fmt: skip
"""Seconds that end a bucket. The first is what the smallest model takes; the last is longer than
callers wait."""

BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""Rows that end a bucket."""


class Histogram:
    """Counts of values by bucket, and their sum. Whoever shares one guards it with a lock.

    Attributes:
      bounds: the largest value of each bucket but the last, which has no bound; ascending.
      counts: how many values fell into each bucket.
      total: the sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = DURATION_BOUNDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        """Returns how many values there were."""
        return sum(self.counts)

    def add(self, value: float, times: int = 1) -> None:
        """Counts a value, as if it had come so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def add_all(self, values: Sequence[float]) -> None:
        """Counts each of `values`."""
        bounds, counts = self.bounds, self.counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self.total += sum(values)

    def copy(self) -> Histogram:
        """Returns a histogram of the same values, which this one's later values do not change."""
        other = Histogram(self.bounds)
        other.counts, other.total = self.counts.copy(), self.total
        return other


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Returns an estimate of the value that a share of all values does not exceed.

    Within a bucket values are taken to be spread evenly; those beyond the last bound count as that
    bound. None if there are no values.

    Args:
      bounds: as of a Histogram.
      counts: as of a Histogram.
      share: in 0..1; 0.5 asks for the median.
    """
    rank = share * sum(counts)
    if not sum(counts):
        return None
    seen, lower = 0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and seen + count >= rank:
            return lower + (bound - lower) * (rank - seen) / count
        seen, lower = seen + count, bound
    return lower
