"""What ModelStatistics tells of a version: how many requests, and where their time went."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from slipway.proto import open_inference_pb2 as protocol

__all__ = ["ModelStatistics", "StageTimes"]


@dataclass(slots=True)
class StageTimes:
    """Seconds that one batch spent in each stage."""

    input: float = 0.0
    compute: float = 0.0
    output: float = 0.0


@dataclass(slots=True)
class _Duration:
    count: int = 0
    nanoseconds: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.nanoseconds += int(seconds * 1e9) * count

    def to_proto(self) -> protocol.StatisticDuration:
        return protocol.StatisticDuration(count=self.count, ns=self.nanoseconds)


@dataclass(slots=True)
class _BatchSize:
    input: _Duration = field(default_factory=_Duration)
    compute: _Duration = field(default_factory=_Duration)
    output: _Duration = field(default_factory=_Duration)


class ModelStatistics:
    """Counts for one version of a model. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_inference_milliseconds = 0
        self._inferences = self._executions = 0
        self._success, self._fail, self._queue = _Duration(), _Duration(), _Duration()
        self._stages = _BatchSize()
        self._batches: dict[int, _BatchSize] = {}

    def executed(
        self, rows: int, waits: list[float], totals: list[float], times: StageTimes
    ) -> None:
        """Counts a batch that gave results.

        Args:
          rows: the size of its batch dimension.
          waits: how long each request waited before it ran, in seconds.
          totals: how long each took from its arrival to its answer, in seconds.
          times: of the batch, which each of its requests took part in.
        """
        with self._lock:
            self._last_inference_milliseconds = time.time_ns() // 1_000_000
            self._inferences += rows
            self._executions += 1
            for wait in waits:
                self._queue.add(wait)
            for total in totals:
                self._success.add(total)
            sizes = self._batches.setdefault(rows, _BatchSize())
            for stages, count in ((self._stages, len(waits)), (sizes, 1)):
                stages.input.add(times.input, count)
                stages.compute.add(times.compute, count)
                stages.output.add(times.output, count)

    def failed(self, seconds: float) -> None:
        """Counts a request that got an error, or whose client went, after so many seconds."""
        with self._lock:
            self._fail.add(seconds)

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
                    success=self._success.to_proto(),
                    fail=self._fail.to_proto(),
                    queue=self._queue.to_proto(),
                    compute_input=self._stages.input.to_proto(),
                    compute_infer=self._stages.compute.to_proto(),
                    compute_output=self._stages.output.to_proto(),
                ),
            )
            for rows, stages in sorted(self._batches.items()):
                statistics.batch_stats.add(
                    batch_size=rows,
                    compute_input=stages.input.to_proto(),
                    compute_infer=stages.compute.to_proto(),
                    compute_output=stages.output.to_proto(),
                )
            return statistics

    def batch_sizes(self) -> Mapping[int, int]:
        """Returns how many batches of each size ran."""
        with self._lock:
            return {rows: stages.compute.count for rows, stages in self._batches.items()}
