"""Traces of requests, sent to an OpenTelemetry collector over OTLP.

The spans of a request are made when it is answered, from the times that were noted on its way, so
that tracing adds nothing to the stages that it measures:

    inference.GRPCInferenceService/ModelInfer    from the message's arrival to its answer
    ├── decode     the message is read, and checked against the contract
    ├── queue      it waits for its turn
    └── batch      it runs, perhaps with others
        └── compute    in the model

A `traceparent` in the request's metadata (https://www.w3.org/TR/trace-context) makes it part of the
client's trace, whose sampling is followed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from slipway.program import VERSION
from slipway.serving.errors import ServingError, StartupError
from slipway.serving.observation import RequestRecord

__all__ = ["RequestTracer", "is_configured"]

_SERVICE = "inference.GRPCInferenceService"

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_SERVER_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
"""Statuses that make a server's span an error
(https://opentelemetry.io/docs/specs/semconv/rpc/grpc)."""

_PROPAGATED = ("traceparent", "tracestate")

_CLOSE_SECONDS = 5.0
"""How long the server's end waits for a collector that is slow."""


def _hide_values(record: logging.LogRecord) -> bool:
    record.args = ("(it is not shown)",) * len(record.args or ())
    return True


# It writes a line for each part of a client's headers that is wrong, and any client can send such.
logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
# And what is wrong with OTEL_EXPORTER_OTLP_HEADERS, where tokens are.
logging.getLogger("opentelemetry.util.re").addFilter(_hide_values)


def is_configured(endpoint: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Returns whether traces are wanted.

    Args:
      endpoint: of the command line; empty for none.
      environment: with OpenTelemetry's standard variables.

    Raises:
      StartupError: they are wanted in a way that there is not.
    """
    if endpoint and not _is_address(endpoint):
        raise StartupError(
            f"--trace-endpoint is {endpoint!r}: expected http://HOST:PORT, or https:// for TLS, of "
            "a collector that takes OTLP over gRPC, such as http://localhost:4317",
            exit_code=2,
        )
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if not endpoint and environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return False
    if not endpoint and not any(environment.get(name) for name in _ENDPOINT_VARIABLES):
        return False
    protocol = next((environment[name] for name in _PROTOCOL_VARIABLES if name in environment), "")
    if protocol not in ("", "grpc"):
        raise StartupError(
            f"OpenTelemetry's variables ask for traces over {protocol!r}; this server sends OTLP "
            "over grpc, which collectors take on port 4317",
            exit_code=2,
        )
    return True


class RequestTracer:
    """Makes spans of requests, and sends them from a thread of its own."""

    def __init__(self, endpoint: str) -> None:
        """Starts the thread, which `close` ends.

        What is not given here follows OpenTelemetry's standard variables, OTEL_*.

        Args:
          endpoint: the collector's, as a URL; empty for that of the variables.

        Raises:
          StartupError: the variables have values that cannot be.
        """
        own = Resource({"service.name": "slipway", "service.version": VERSION})
        try:
            self._provider = TracerProvider(
                resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
            )
            self._provider.add_span_processor(
                BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint or None))
            )
        except ValueError as error:
            raise StartupError(
                f"OpenTelemetry's variables (OTEL_*) do not go together: {error}", exit_code=2
            ) from error
        self._tracer = self._provider.get_tracer("slipway.serving", VERSION)
        self._propagator = TraceContextTextMapPropagator()

    def trace(self, record: RequestRecord, error: ServingError | None, answered: float) -> str:
        """Makes the spans of a request.

        Args:
          record: what was noted of it.
          error: what it was answered with instead of a result.
          answered: when it was, by the monotonic clock, in seconds.

        Returns:
          The trace's id as 32 hexadecimal digits, or "" if it is not sampled.
        """
        offset = time.time() - time.monotonic()

        def wall(moment: float) -> int:
            return int((moment + offset) * 1e9)

        carrier = {
            name: value
            for name, value in record.metadata
            if name in _PROPAGATED and isinstance(value, str)
        }
        span = self._tracer.start_span(
            f"{_SERVICE}/{record.method}",
            self._propagator.extract(carrier, Context()),
            trace.SpanKind.SERVER,
            _attributes(record, error),
            start_time=wall(record.arrived),
        )
        if not span.is_recording():
            return ""

        def child(name: str, parent: trace.Span, start: float, end: float) -> trace.Span:
            context = trace.set_span_in_context(parent, Context())
            part = self._tracer.start_span(name, context, start_time=wall(start))
            part.end(wall(end))
            return part

        child("decode", span, record.arrived, record.admitted or answered)
        if record.admitted:
            child("queue", span, record.admitted, record.started or answered)
        if record.started:
            batch = child("batch", span, record.started, answered)
            computing = record.started + record.times.input
            child("compute", batch, computing, computing + record.times.compute)
        if error is not None and error.status in _SERVER_FAULTS:
            span.set_status(trace.StatusCode.ERROR, error.status.name)
        span.end(wall(answered))
        return trace.format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Sends what has not been sent yet, for a few seconds at most."""
        # In a thread, as OpenTelemetry does not keep to times that it is given: it waits ten
        # seconds for each batch.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)


def _is_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port or an address that is none
        return False


def _attributes(record: RequestRecord, error: ServingError | None) -> dict[str, AttributeValue]:
    status = grpc.StatusCode.OK if error is None else error.status
    attributes: dict[str, AttributeValue] = {
        "rpc.system": "grpc",
        "rpc.service": _SERVICE,
        "rpc.method": record.method,
        "rpc.grpc.status_code": status.value[0],
    }
    if record.model is not None:
        attributes["slipway.model.name"] = record.model.name
        attributes["slipway.model.version"] = record.model.version
        attributes["slipway.program.digest"] = record.model.digest
    if record.request_id:
        attributes["slipway.request.id"] = record.request_id
    if record.started:
        attributes["slipway.request.rows"] = record.rows
        attributes["slipway.batch.rows"] = record.batch_rows
        attributes["slipway.batch.requests"] = record.batch_requests
    if error is not None and error.violations:
        attributes["slipway.refusal.kinds"] = sorted({item.reason for item in error.violations})
    return attributes
