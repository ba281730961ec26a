"""Traces, as a collector on the loopback gets them from a server process."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from slipway.tests.monitoring.traffic import infer, refuse
from slipway.tests.monitoring.watched_server import WatchedServer
from slipway.tests.serving.clients import open_client
from slipway.tests.serving.requests import tensor
from slipway.tests.serving.server_process import server_command, server_environment

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
NAME = "inference.GRPCInferenceService/ModelInfer"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent.

    Attributes:
      spans: in the order in which they came.
      resources: the attributes of who sent them.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: dict[str, Any] = {}

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        for item in request.resource_spans:
            self.resources.update(attributes(item.resource))
            for scope in item.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, identifier: str) -> dict[str, Span]:
        """Returns the spans of one trace by their name."""
        return {span.name: span for span in self.spans if span.trace_id.hex() == identifier}


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def attributes(item: Any) -> dict[str, Any]:
    return {
        entry.key: getattr(entry.value, entry.value.WhichOneof("value"))
        for entry in item.attributes
    }


def test_a_request_is_part_of_the_client_s_trace(
    repository: Path, tmp_path: Path, collector: tuple[Collector, str]
) -> None:
    received, endpoint = collector
    flags = [f"--trace-endpoint={endpoint}", "--access-log-sample=1"]
    with (
        WatchedServer(repository, tmp_path / "log", flags) as server,
        open_client(server.address) as client,
    ):
        sampled = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        infer(client, rows=3, request_id="one", headers=sampled)
        refused = TRACE[::-1]
        refuse(client, rows=20, headers={"traceparent": f"00-{refused}-{PARENT}-01"})
        not_sampled = "1" * 32
        infer(client, headers={"traceparent": f"00-{not_sampled}-{PARENT}-00"})
        infer(client, headers={"traceparent": "nonsense"})
        assert server.stop() == 0  # which sends what is left
        log = (tmp_path / "log").read_text()

    spans = received.trace(TRACE)
    assert set(spans) == {NAME, "decode", "queue", "batch", "compute"}
    root = spans[NAME]
    assert (root.parent_span_id.hex(), root.kind) == (PARENT, Span.SPAN_KIND_SERVER)
    for child, parent in (
        ("decode", root),
        ("queue", root),
        ("batch", root),
        ("compute", spans["batch"]),
    ):
        span = spans[child]
        assert span.parent_span_id == parent.span_id
        assert parent.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= parent.end_time_unix_nano
    assert spans["decode"].end_time_unix_nano == spans["queue"].start_time_unix_nano
    assert spans["queue"].end_time_unix_nano == spans["batch"].start_time_unix_nano
    told = attributes(root)
    assert told["slipway.model.name"] == "affine"
    assert told["slipway.request.id"] == "one"
    assert (told["slipway.request.rows"], told["slipway.batch.rows"]) == (3, 3)
    assert told["rpc.grpc.status_code"] == 0

    spans = received.trace(refused)
    assert set(spans) == {NAME, "decode"}
    told = attributes(spans[NAME])
    assert told["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert [item.string_value for item in told["slipway.refusal.kinds"].values] == ["RANGE"]
    assert spans[NAME].status.code == Status.STATUS_CODE_UNSET  # it is the client's mistake

    assert not received.trace(not_sampled)
    # The one without a usable parent begins a trace of its own.
    assert len({span.trace_id for span in received.spans}) == 3
    assert received.resources["service.name"] == "slipway"
    assert f"trace_id={TRACE}" in log


def test_every_request_of_a_stream_is_traced(
    repository: Path, tmp_path: Path, collector: tuple[Collector, str]
) -> None:
    received, endpoint = collector
    with (
        WatchedServer(repository, tmp_path / "log", [f"--trace-endpoint={endpoint}"]) as server,
        open_client(server.address) as client,
    ):
        answers: list[Any] = []
        x = tensor("x", np.ones((2, 4), np.float32), "FP32")
        client.start_stream(
            lambda result, error: answers.append(error),
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "stream"},
            stream_timeout=20,
        )
        for identifier in ("a", "b"):
            client.async_stream_infer("affine", [x], request_id=identifier)
        client.stop_stream()
        assert answers == [None, None]
        assert server.stop() == 0
    roots = [span for span in received.spans if span.name.endswith("/ModelStreamInfer")]
    assert {attributes(span)["slipway.request.id"] for span in roots} == {"stream/a", "stream/b"}
    assert {span.parent_span_id.hex() for span in roots} == {PARENT}


def test_an_endpoint_that_is_no_url_is_refused(repository: Path) -> None:
    result = subprocess.run(
        server_command(f"--repository={repository}", "--port=0", "--trace-endpoint=localhost:4317"),
        env=server_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 2
    assert "expected http://HOST:PORT" in result.stderr


def test_a_collector_that_is_away_costs_no_request(repository: Path, tmp_path: Path) -> None:
    flags = ["--trace-endpoint=http://127.0.0.1:1"]
    with (
        WatchedServer(repository, tmp_path / "log", flags) as server,
        open_client(server.address) as client,
    ):
        for _ in range(10):
            infer(client)
        assert server.stop() == 0
