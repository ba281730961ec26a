"""What is noted of single requests, for traces and for the access log.

Where neither is on there is no observer, no record is made, and a request costs nothing more.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slipway.serving.errors import ServingError
from slipway.serving.statistics import StageTimes

if TYPE_CHECKING:
    from slipway.serving.model import Model
    from slipway.serving.tracing import RequestTracer

__all__ = ["ACCESS_LOGGER", "Metadata", "RequestObserver", "RequestRecord", "request_id"]

ACCESS_LOGGER = "slipway.access"
"""The logger of the access log; it does not depend on the log's level."""

_ACCESS = logging.getLogger(ACCESS_LOGGER)

Metadata = Iterable[tuple[str, str | bytes]]
"""What a client sent beside its message: names and values."""

_ID_LIMIT = 128


@dataclass(slots=True)
class RequestRecord:
    """One request, from its arrival to its answer; times are of the monotonic clock, in seconds.

    Attributes:
      observer: who is told when it is answered.
      method: of the protocol.
      metadata: what came beside the message.
      arrived: when the message had been read.
      is_logged: whether it is a line of the access log.
      identifier: its id in the protocol.
      model: whose it is; None while that is not known.
      rows: the size of its batch dimension.
      size: bytes that it holds.
      admitted: when it was found legal and began to wait; 0 if it was refused.
      started: when its batch began to run; 0 if it never did.
      times: of its batch.
      batch_rows: the size of the batch dimension of its batch.
      batch_requests: how many requests ran in its batch.
    """

    observer: RequestObserver
    method: str
    metadata: Metadata
    arrived: float
    is_logged: bool
    identifier: str = ""
    model: Model | None = None
    rows: int = 0
    size: int = 0
    admitted: float = 0.0
    started: float = 0.0
    times: StageTimes = field(default_factory=StageTimes)
    batch_rows: int = 0
    batch_requests: int = 0

    @property
    def request_id(self) -> str:
        """Returns what the request is called; see the function of this name."""
        is_stream = self.method != "ModelInfer"
        return request_id(self.metadata, self.identifier, is_stream=is_stream)

    def ran(self, started: float, times: StageTimes, rows: int, requests: int) -> None:
        """Notes the batch that it was in.

        Args:
          started: when that began to run.
          times: of its stages.
          rows: of all its requests.
          requests: how many these are.
        """
        self.started, self.times = started, times
        self.batch_rows, self.batch_requests = rows, requests

    def finish(self, error: ServingError | None) -> None:
        """Hands the record on; called once, when the request is answered.

        Args:
          error: what it was answered with instead of a result.
        """
        self.observer.finished(self, error)


class RequestObserver:
    """Makes records of requests, and hands those that are finished to the log and to the tracer."""

    def __init__(self, access_share: float, tracer: RequestTracer | None) -> None:
        """Makes an observer for all requests.

        Args:
          access_share: of the requests that are written to the access log, chosen at random, 0..1.
          tracer: makes spans of the records; None for no traces.
        """
        self._access_share = access_share
        self._tracer = tracer

    def begin(self, method: str, metadata: Metadata, arrived: float) -> RequestRecord | None:
        """Returns the record of a request that has arrived, or None if it is not observed."""
        is_logged = random.random() < self._access_share
        if not is_logged and self._tracer is None:
            return None
        return RequestRecord(self, method, metadata, arrived, is_logged)

    def finished(self, record: RequestRecord, error: ServingError | None) -> None:
        """Takes a record whose request has been answered; errors here never reach the request."""
        now = time.monotonic()
        try:
            trace = "" if self._tracer is None else self._tracer.trace(record, error, now)
            if record.is_logged:
                _log_access(record, error, now, trace)
        except Exception:
            logging.getLogger(__name__).exception("a request could not be observed")

    def close(self) -> None:
        """Sends what has not been sent yet."""
        if self._tracer is not None:
            self._tracer.close()


def _log_access(record: RequestRecord, error: ServingError | None, now: float, trace: str) -> None:
    model = record.model
    fields: dict[str, object] = {
        "method": record.method,
        # Never the name that a client asked for: it may be anything.
        "model": "" if model is None else model.name,
        "version": "" if model is None else model.version,
        "code": "OK" if error is None else error.status.name,
        "rows": record.rows,
        "bytes": record.size,
        "batch_rows": record.batch_rows,
        "batch_requests": record.batch_requests,
        "total_seconds": round(now - record.arrived, 6),
    }
    if record.started:
        fields["queue_seconds"] = round(record.started - record.arrived, 6)
        fields["compute_seconds"] = round(record.times.compute, 6)
    if trace:
        fields["trace_id"] = trace
    _ACCESS.info("request", extra={"request_id": record.request_id, "fields": fields})


def request_id(metadata: Metadata, identifier: str | bytes, *, is_stream: bool = False) -> str:
    """Returns what a request is called in logs: its `x-request-id`, or else the protocol's id.

    Args:
      metadata: what came beside the message.
      identifier: the id in the message.
      is_stream: whether the metadata is that of many requests, so that both are needed.

    Returns:
      At most 128 printable characters; others are replaced. Empty if it has neither.
    """
    if isinstance(identifier, bytes):
        identifier = identifier.decode(errors="replace")
    values: Sequence[str | bytes] = [value for name, value in metadata if name == "x-request-id"]
    given = values[0] if values else ""
    if isinstance(given, bytes):
        given = given.decode(errors="replace")
    parts = [given, identifier] if is_stream else [given or identifier]
    text = "/".join(part for part in parts if part)[:_ID_LIMIT]
    return "".join(character if "!" <= character <= "~" else "?" for character in text)
