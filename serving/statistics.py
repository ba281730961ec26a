"""Counts of a version's requests: how many, how they ended, and where their time went.

They are updated once per batch, and once for each request that gets no result. ModelStatistics, the
metrics and the status page read them; nothing else is counted on the way of a request.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import ServingError
from slipway.serving.histograms import BATCH_BOUNDS, Histogram

__all__ = ["STAGES", "ModelStatistics", "RefusalCounts", "Snapshot", "StageTimes"]

STAGES = ("queue", "input", "compute", "output", "total")
"""Parts of a request's time: until its batch runs, until its tensors are on the device, in the
model, until it is answered; and all of it."""

_KEPT_BATCH_SIZES = 1024


@dataclass(slots=True)
class StageTimes:
    """Seconds that one batch spent in each stage, and what its computation took of processors."""

    input: float = 0.0
    compute: float = 0.0
    output: float = 0.0
    processor: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts of a version at one moment.

    Attributes:
      codes: requests by the name of the gRPC status that they were answered with.
      refusals: requests without a result, by kind: see `RefusalCounts`.
      stages: seconds of the requests that got one, by stage.
      batches: rows of the batches that ran.
    """

    codes: dict[str, int]
    refusals: dict[str, int]
    stages: dict[str, Histogram]
    batches: Histogram


class RefusalCounts:
    """Counts requests that got no result. Safe for several threads.

    The kind of a refusal is the `reason` of each of the error's violations, or else the name of its
    status; both are words of the server's own, never a client's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._codes: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()

    def add(self, error: ServingError) -> None:
        """Counts a request that is answered with `error`."""
        code = error.status.name
        kinds = {violation.reason for violation in error.violations} or {code}
        with self._lock:
            self._codes[code] += 1
            self._kinds.update(kinds)

    @property
    def codes(self) -> dict[str, int]:
        """Returns how many requests ended with each status."""
        with self._lock:
            return dict(self._codes)

    @property
    def kinds(self) -> dict[str, int]:
        """Returns how many requests were refused for each kind; one may count for several."""
        with self._lock:
            return dict(self._kinds)


@dataclass(slots=True)
class _BatchSize:
    count: int = 0
    seconds: StageTimes = field(default_factory=StageTimes)


class ModelStatistics:
    """Counts for one version of a model. Safe for several threads.

    Attributes:
      refusals: the requests that got no result.
    """

    def __init__(self) -> None:
        self.refusals = RefusalCounts()
        self._lock = threading.Lock()
        self._last_inference_milliseconds = 0
        self._inferences = self._executions = 0
        self._failures, self._failed_seconds = 0, 0.0
        self._queue, self._input, self._compute, self._output, self._total = (
            Histogram() for _ in STAGES
        )
        self._rows = Histogram(BATCH_BOUNDS)
        self._batches: dict[int, _BatchSize] = {}

    def executed(
        self, rows: int, waits: Sequence[float], totals: Sequence[float], times: StageTimes
    ) -> None:
        """Counts a batch that gave results.

        Args:
          rows: the size of its batch dimension.
          waits: how long each request waited before it ran, in seconds.
          totals: how long each took from its arrival to its answer, in seconds.
          times: of the batch, which each of its requests took part in.
        """
        count = len(waits)
        with self._lock:
            self._last_inference_milliseconds = time.time_ns() // 1_000_000
            self._inferences += rows
            self._executions += 1
            self._queue.add_all(waits)
            self._total.add_all(totals)
            self._input.add(times.input, count)
            self._compute.add(times.compute, count)
            self._output.add(times.output, count)
            self._rows.add(rows)
            size = self._batches.get(rows)
            if size is None:
                if len(self._batches) >= _KEPT_BATCH_SIZES:
                    return  # clients choose the sizes, and each takes memory
                size = self._batches[rows] = _BatchSize()
            size.count += 1
            size.seconds.input += times.input
            size.seconds.compute += times.compute
            size.seconds.output += times.output

    def failed(self, seconds: float, error: ServingError) -> None:
        """Counts a request for the model that got an error, after so many seconds."""
        self.refusals.add(error)
        with self._lock:
            self._failures += 1
            self._failed_seconds += seconds

    def snapshot(self) -> Snapshot:
        """Returns the counts as they are now."""
        refusals = self.refusals
        with self._lock:
            histograms = (self._queue, self._input, self._compute, self._output, self._total)
            stages = {
                name: histogram.copy() for name, histogram in zip(STAGES, histograms, strict=True)
            }
            batches = self._rows.copy()
        codes = {"OK": stages["total"].count, **refusals.codes}
        return Snapshot(codes, refusals.kinds, stages, batches)

    def to_proto(self, name: str, version: int) -> protocol.ModelStatistics:
        """Returns the counts as the protocol has them.

        Args:
          name: of the model.
          version: of the model.
        """
        with self._lock:
            statistics = protocol.ModelStatistics(
                name=name,
                version=str(version),
                last_inference=self._last_inference_milliseconds,
                inference_count=self._inferences,
                execution_count=self._executions,
                inference_stats=protocol.InferStatistics(
                    success=_duration(self._total.count, self._total.total),
                    fail=_duration(self._failures, self._failed_seconds),
                    queue=_duration(self._queue.count, self._queue.total),
                    compute_input=_duration(self._input.count, self._input.total),
                    compute_infer=_duration(self._compute.count, self._compute.total),
                    compute_output=_duration(self._output.count, self._output.total),
                ),
            )
            for rows, size in sorted(self._batches.items()):
                statistics.batch_stats.add(
                    batch_size=rows,
                    compute_input=_duration(size.count, size.seconds.input),
                    compute_infer=_duration(size.count, size.seconds.compute),
                    compute_output=_duration(size.count, size.seconds.output),
                )
            return statistics

    def batch_sizes(self) -> Mapping[int, int]:
        """Returns how many batches of each size ran."""
        with self._lock:
            return {rows: size.count for rows, size in self._batches.items()}


def _duration(count: int, seconds: float) -> protocol.StatisticDuration:
    return protocol.StatisticDuration(count=count, ns=int(seconds * 1e9))
