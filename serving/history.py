"""The last minutes of each version, for the plots of the status page."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from slipway.serving.histograms import DURATION_BOUNDS, quantile
from slipway.serving.repository import Repository

__all__ = ["History", "Point"]

_SECONDS = 2.0
_SAMPLES = 151


@dataclass(frozen=True, slots=True)
class _Sample:
    moment: float
    refused: int
    buckets: Sequence[int]


@dataclass(frozen=True, slots=True)
class Point:
    """What a version did between two looks at it.

    Attributes:
      rate: requests that got a result, a second.
      refused: requests that got none, a second.
      median: seconds that half of the first took at most; None without any.
      slow: seconds that 95 % of them took at most; None without any.
    """

    rate: float
    refused: float
    median: float | None
    slow: float | None


class History:
    """Looks at the counts of every version, every two seconds, and keeps five minutes."""

    seconds = _SECONDS
    """Between two points."""

    def __init__(self, repository: Repository) -> None:
        """Starts the thread that looks, which `close` ends."""
        self._repository = repository
        self._lock = threading.Lock()
        self._samples: dict[tuple[str, int], deque[_Sample]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="history", daemon=True)
        self._thread.start()

    def points(self, name: str, version: int) -> list[Point]:
        """Returns the points of a version, from the oldest to the latest."""
        with self._lock:
            samples = list(self._samples.get((name, version), ()))
        return [_point(old, new) for old, new in itertools.pairwise(samples)]

    def close(self) -> None:
        """Stops looking."""
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        now = time.monotonic() - _SECONDS
        while True:
            before, now = now, time.monotonic()
            samples = {}
            for model in self._repository.models:
                snapshot = model.statistics.snapshot()
                refused = sum(count for code, count in snapshot.codes.items() if code != "OK")
                samples[model.name, model.version] = _Sample(
                    now, refused, snapshot.stages["total"].counts
                )
            with self._lock:
                for gone in self._samples.keys() - samples.keys():
                    del self._samples[gone]
                for key, sample in samples.items():
                    if key not in self._samples:
                        # It was not there at the last look, and had no requests then.
                        nothing = _Sample(before, 0, [0] * len(sample.buckets))
                        self._samples[key] = deque([nothing], maxlen=_SAMPLES)
                    self._samples[key].append(sample)
            if self._stop.wait(_SECONDS):
                return


def _point(old: _Sample, new: _Sample) -> Point:
    seconds = max(new.moment - old.moment, 1e-3)
    counts = [after - before for before, after in zip(old.buckets, new.buckets, strict=True)]
    if min(counts) < 0:
        counts = list(new.buckets)  # it was loaded again, and counts from nothing
    refused = new.refused - old.refused
    return Point(
        rate=sum(counts) / seconds,
        refused=(refused if refused >= 0 else new.refused) / seconds,
        median=quantile(DURATION_BOUNDS, counts, 0.5),
        slow=quantile(DURATION_BOUNDS, counts, 0.95),
    )
