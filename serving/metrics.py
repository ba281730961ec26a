"""The server's metrics, as Prometheus reads them; `docs/metrics.md` lists them.

Nothing is counted here: a scrape reads what the serving path keeps anyway. Every label's value is a
word of the server's own or the name of a model of the repository, so what clients send cannot make
new time series. The names of compiled targets come from the repository too.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from slipway.program import VERSION
from slipway.serving.credentials import TlsFiles
from slipway.serving.devices import Device
from slipway.serving.histograms import Histogram
from slipway.serving.inference import InferenceFrontend
from slipway.serving.memory_budget import MemoryBudget
from slipway.serving.model import Model
from slipway.serving.repository import Repository
from slipway.serving.service import InferenceService
from slipway.serving.statistics import Snapshot
from slipway.serving.streaming import InferenceStreams

__all__ = ["Metrics", "Sources"]

_MODEL = ("model", "version")

# For Prometheus a series that begins with 1 has not increased: an alert would miss the first.
_ALERTED_CODES = dict.fromkeys(("DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED"), 0)


@dataclass(frozen=True, slots=True)
class Sources:
    """What the metrics and the status page tell of.

    Attributes:
      repository: the models.
      service: knows whether the server is ready.
      frontend: counts requests for no model.
      streams: that are open.
      memory: of all requests.
      devices: where models run.
      tls: the server's certificates; None if it has none.
    """

    repository: Repository
    service: InferenceService
    frontend: InferenceFrontend
    streams: InferenceStreams
    memory: MemoryBudget
    devices: Sequence[Device]
    tls: TlsFiles | None = None


class Metrics:
    """The metrics page."""

    def __init__(self, sources: Sources) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_ServerCollector(sources))
        self._registry.register(_ModelCollector(sources))
        ProcessCollector(registry=self._registry)

    def page(self, accept: str) -> tuple[bytes, str]:
        """Returns the page and its content type.

        Args:
          accept: the request's header Accept; OpenMetrics is written where it asks for that.
        """
        try:
            encoder, content_type = choose_encoder(accept)
        except TypeError:
            # Of a version that is no number, which prometheus_client compares with one.
            encoder, content_type = choose_encoder("")
        return encoder(self._registry), content_type


class _ServerCollector(Collector):
    """Metrics of the server as a whole."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        sources = self._sources
        yield InfoMetricFamily(
            "slipway_build",
            "Versions of what runs.",
            value={
                "version": VERSION,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        )
        yield _gauge(
            "slipway_ready",
            "Whether requests to every model are welcome.",
            sources.service.is_ready(),
        )
        yield _gauge("slipway_streams", "Streams that are open.", sources.streams.open_count)
        yield _gauge(
            "slipway_request_memory_bytes",
            "Bytes of the requests in the server, and of answers that were not read.",
            sources.memory.used,
        )
        yield _gauge(
            "slipway_request_memory_limit_bytes",
            "Bytes that these may have.",
            sources.memory.limit,
        )
        expiry = GaugeMetricFamily(
            "slipway_tls_certificate_expiry_timestamp_seconds",
            "When the first of the server's certificates expires, in seconds since 1970.",
            labels=[],
        )
        if sources.tls is not None and sources.tls.expiry is not None:
            expiry.add_metric([], sources.tls.expiry)
        yield expiry
        allocated = GaugeMetricFamily(
            "slipway_device_memory_allocated_bytes",
            "Bytes held by this process.",
            labels=["device"],
        )
        available = GaugeMetricFamily(
            "slipway_device_memory_available_bytes",
            "Bytes that can still be had.",
            labels=["device"],
        )
        for device in sources.devices:
            labels = [str(device.torch_device)]
            allocated.add_metric(labels, device.allocated_memory())
            available.add_metric(labels, device.available_memory())
        yield from (allocated, available)
        yield from self._repository()

    def _repository(self) -> Iterator[Metric]:
        loads = CounterMetricFamily(
            "slipway_model_loads", "Loads of versions.", labels=["model", "outcome"]
        )
        counts = self._sources.repository.loads()
        for name in sorted({name for name, _ in counts}):
            for outcome, is_success in (("failure", False), ("success", True)):
                loads.add_metric([name, outcome], counts.get((name, is_success), 0))
        yield loads
        states = GaugeMetricFamily(
            "slipway_model_version_state",
            "1 for the state that a version of the repository is in.",
            labels=[*_MODEL, "state"],
        )
        for line in self._sources.repository.index():
            if line.version:
                states.add_metric([line.name, str(line.version), line.state.value], 1)
        yield states


class _ModelCollector(Collector):
    """Metrics of each version that takes requests, by `model` and `version`."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        models = sorted(
            self._sources.repository.models, key=lambda model: (model.name, model.version)
        )
        yield from self._gauges(models)
        program = InfoMetricFamily("slipway_program", "The program of a version.", labels=_MODEL)
        for model in models:
            program.add_metric(
                _labels(model),
                {
                    "digest": model.digest,
                    "device": str(model.device),
                    "execution": model.execution.target or "graph",
                },
            )
        yield program
        snapshots = {_labels(model): model.statistics.snapshot() for model in models}
        yield from self._requests(snapshots)
        stages = HistogramMetricFamily(
            "slipway_request_duration_seconds",
            "Seconds of requests that got a result, by stage.",
            labels=[*_MODEL, "stage"],
        )
        batches = HistogramMetricFamily(
            "slipway_batch_rows", "Rows of the batches that ran.", labels=_MODEL
        )
        for labels, snapshot in snapshots.items():
            for stage, histogram in snapshot.stages.items():
                _add(stages, (*labels, stage), histogram)
            _add(batches, labels, snapshot.batches)
        yield stages
        yield batches

    def _gauges(self, models: Iterable[Model]) -> Iterator[Metric]:
        requests = GaugeMetricFamily("slipway_queue_requests", "Requests that wait.", labels=_MODEL)
        size = GaugeMetricFamily(
            "slipway_queue_bytes", "Bytes of the requests that wait.", labels=_MODEL
        )
        running = GaugeMetricFamily(
            "slipway_running_batches", "Batches that are being run.", labels=_MODEL
        )
        load = GaugeMetricFamily(
            "slipway_model_load_seconds",
            "Seconds that it took to load, verify and warm up a version.",
            labels=_MODEL,
        )
        for model in models:
            labels = _labels(model)
            queued, held = model.scheduler.queued
            requests.add_metric(labels, queued)
            size.add_metric(labels, held)
            running.add_metric(labels, model.scheduler.running)
            load.add_metric(labels, model.load_seconds)
        yield from (requests, size, running, load)

    def _requests(self, snapshots: Mapping[tuple[str, str], Snapshot]) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "slipway_requests",
            "Requests that were answered, by the status that they got. Those for no model of the "
            "repository have empty names.",
            labels=[*_MODEL, "code"],
        )
        refusals = CounterMetricFamily(
            "slipway_refusals",
            "Requests that got no result, by each kind of thing that was wrong.",
            labels=[*_MODEL, "kind"],
        )
        elsewhere = self._sources.frontend.refusals
        counts = {labels: (item.codes, item.refusals) for labels, item in snapshots.items()}
        counts["", ""] = (elsewhere.codes, elsewhere.kinds)
        for labels, (codes, kinds) in counts.items():
            for code, count in sorted({**_ALERTED_CODES, **codes}.items()):
                requests.add_metric([*labels, code], count)
            for kind, count in sorted(kinds.items()):
                refusals.add_metric([*labels, kind], count)
        yield requests
        yield refusals


def _labels(model: Model) -> tuple[str, str]:
    return model.name, str(model.version)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    total = 0
    buckets = []
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((str(bound), total))
    family.add_metric(labels, buckets, histogram.total)
