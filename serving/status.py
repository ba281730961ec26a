"""The status of the server as a document, and the pages that are served over HTTP."""

from __future__ import annotations

import http
import json
import time
from email.message import Message
from pathlib import Path
from typing import Any

from slipway.program import VERSION, Contract
from slipway.serving.histograms import DURATION_BOUNDS, quantile
from slipway.serving.history import History
from slipway.serving.metrics import Metrics, Sources
from slipway.serving.model import Model
from slipway.serving.monitoring import MonitoringServer, Response
from slipway.serving.repository import State, VersionStatus
from slipway.serving.status_html import status_html

__all__ = ["Monitoring", "status_document"]

_ASSETS = Path(__file__).parent / "status_page"

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class Monitoring:
    """Metrics, the status page and probes, over HTTP.

    Attributes:
      address: HOST:PORT.
    """

    def __init__(self, host: str, port: int, sources: Sources) -> None:
        """Listens and serves until it is closed.

        Args:
          host: a name or address of this machine.
          port: 0 for any that is free.
          sources: what there is to tell.

        Raises:
          StartupError: the address cannot be had.
        """
        self._sources = sources
        self._metrics = Metrics(sources)
        self._started = time.monotonic()
        self._assets = {
            f"/{name}": Response((_ASSETS / name).read_bytes(), content_type)
            for name, content_type in (
                ("status.css", "text/css; charset=utf-8"),
                ("status.js", "text/javascript; charset=utf-8"),
            )
        }
        self._server = MonitoringServer(
            host,
            port,
            {
                "/": self._page,
                "/status.json": self._json,
                "/metrics": self._metrics_page,
                "/livez": lambda _: Response(b"live\n"),
                "/readyz": self._ready,
                **{path: _always(response) for path, response in self._assets.items()},
            },
        )
        self.address = self._server.address
        self._history = History(sources.repository)

    def close(self) -> None:
        """Stops."""
        self._server.close()
        self._history.close()

    def _document(self) -> dict[str, Any]:
        return status_document(self._sources, self._history, time.monotonic() - self._started)

    def _page(self, _: Message[str, str]) -> Response:
        return Response(status_html(self._document()).encode(), "text/html; charset=utf-8")

    def _json(self, _: Message[str, str]) -> Response:
        return Response(json.dumps(self._document()).encode(), "application/json")

    def _metrics_page(self, headers: Message[str, str]) -> Response:
        return Response(*self._metrics.page(headers.get("Accept", "")))

    def _ready(self, _: Message[str, str]) -> Response:
        if self._sources.service.is_ready():
            return Response(b"ready\n")
        return Response(b"not ready\n", status=http.HTTPStatus.SERVICE_UNAVAILABLE)


def _always(response: Response) -> Any:
    return lambda _: response


def status_document(sources: Sources, history: History, uptime: float) -> dict[str, Any]:
    """Returns the status as nested dicts and lists, as JSON has them.

    Args:
      sources: what there is to tell.
      history: of the versions' rates and latencies.
      uptime: of the server, in seconds.
    """
    lines = sources.repository.index()
    models = sorted(sources.repository.models, key=lambda model: (model.name, model.version))
    reasons = {(line.name, line.version): line.reason for line in lines}
    entries = [
        _model(model, history, reasons.get((model.name, model.version), "")) for model in models
    ]
    entries += [_other(line) for line in lines if line.state is not State.READY]
    entries.sort(key=lambda entry: (entry["name"], -entry["version"]))
    return {
        "version": VERSION,
        "phase": sources.service.phase.name,
        "ready": sources.service.is_ready(),
        "uptime_seconds": uptime,
        "device": ", ".join(str(device.torch_device) for device in sources.devices),
        "streams": sources.streams.open_count,
        "request_bytes": sources.memory.used,
        "refusals": sources.frontend.refusals.kinds,
        "point_seconds": history.seconds,
        "models": entries,
    }


def _model(model: Model, history: History, reason: str) -> dict[str, Any]:
    snapshot = model.statistics.snapshot()
    queued, held = model.scheduler.queued
    points = history.points(model.name, model.version)
    total = snapshot.stages["total"]
    return {
        "name": model.name,
        "version": model.version,
        "state": State.READY.value,
        "reason": reason,
        "digest": model.digest,
        "device": str(model.device),
        "execution": model.execution.target or "graph",
        "execution_reason": model.execution.reason,
        "load_seconds": model.load_seconds,
        "contract": _contract(model.contract),
        "queue_requests": queued,
        "queue_bytes": held,
        "running_batches": model.scheduler.running,
        "requests": snapshot.codes,
        "refusals": snapshot.refusals,
        "batch_rows": snapshot.batches.total / max(snapshot.batches.count, 1),
        "latency_seconds": {
            name: quantile(DURATION_BOUNDS, total.counts, share)
            for name, share in _QUANTILES.items()
        },
        "points": {
            "rate": [point.rate for point in points],
            "refused": [point.refused for point in points],
            "median": [point.median for point in points],
            "slow": [point.slow for point in points],
        },
    }


def _other(line: VersionStatus) -> dict[str, Any]:
    return {
        "name": line.name,
        "version": line.version,
        "state": line.state.value,
        "reason": line.reason,
    }


def _contract(contract: Contract) -> dict[str, Any]:
    return {
        "inputs": [[name, str(spec)] for name, spec in contract.tensor_inputs.items()],
        "outputs": [
            [item.name, str(item.tensor)] for item in contract.outputs if item.tensor is not None
        ],
        "symbols": [[symbol.name, symbol.allowed] for symbol in contract.symbols],
        "relations": [str(relation) for relation in contract.relations],
        "batching": "" if contract.batching is None else str(contract.batching),
    }
