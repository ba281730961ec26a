"""When requests are traced; what is sent is tested in //tests/monitoring."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping

import pytest

from slipway.serving import tracing
from slipway.serving.errors import StartupError
from slipway.serving.observation import RequestObserver
from slipway.serving.tracing import RequestTracer, is_configured

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"}


@pytest.mark.parametrize(
    ("endpoint", "environment", "expected"),
    [
        ("", {}, False),
        ("", {"OTEL_SERVICE_NAME": "ranker"}, False),
        ("http://localhost:4317", {}, True),
        ("", ENDPOINT, True),
        ("", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4317"}, True),
        ("", {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ("", {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, True),
        ("http://localhost:4317", {"OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_a_flag_or_a_standard_variable_asks_for_traces(
    endpoint: str, environment: Mapping[str, str], expected: bool
) -> None:
    assert is_configured(endpoint, environment) is expected


@pytest.mark.parametrize(
    ("endpoint", "environment", "text"),
    [
        ("localhost:4317", {}, "expected http://HOST:PORT"),
        ("http://", {}, "expected http://HOST:PORT"),
        ("http://localhost:otlp", {}, "expected http://HOST:PORT"),
        ("http://[::1:4317", {}, "expected http://HOST:PORT"),
        ("", {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "over grpc"),
    ],
)
def test_what_it_cannot_do_keeps_it_from_starting(
    endpoint: str, environment: Mapping[str, str], text: str
) -> None:
    with pytest.raises(StartupError, match=text) as caught:
        is_configured(endpoint, environment)
    assert caught.value.exit_code == 2


def test_variables_that_do_not_go_together_keep_it_from_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    with pytest.raises(
        StartupError, match=r"OTEL_.*less than or equal to max_queue_size"
    ) as caught:
        RequestTracer("http://localhost:4317")
    assert caught.value.exit_code == 2


def test_a_token_in_a_header_that_is_written_wrongly_is_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization: Bearer a-token")
    RequestTracer("http://localhost:4317").close()
    assert "Header format invalid" in caplog.text
    assert "a-token" not in caplog.text


def test_headers_of_clients_that_are_wrong_are_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")  # so that nothing is to be sent
    observer = RequestObserver(0.0, RequestTracer("http://localhost:4317"))
    parent = f"00-{'a' * 32}-{'b' * 16}-00"
    for headers in (
        {"traceparent": parent, "tracestate": "=;%,=;%,a=1,a=2"},
        {"traceparent": "x" * 9000},
    ):
        record = observer.begin("ModelInfer", headers.items(), time.monotonic())
        assert record is not None
        record.finish(None)
    assert caplog.records == []
    observer.close()


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracing, "_CLOSE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        observer = RequestObserver(
            0.0, RequestTracer(f"http://127.0.0.1:{silent.getsockname()[1]}")
        )
        for _ in range(1000):
            record = observer.begin("ModelInfer", (), time.monotonic())
            assert record is not None
            record.finish(None)
        started = time.monotonic()
        observer.close()
        assert time.monotonic() - started < 5  # OpenTelemetry waits for twice as long at least
