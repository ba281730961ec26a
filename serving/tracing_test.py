"""When requests are traced; what is sent is tested in //tests/monitoring."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from slipway.serving.errors import StartupError
from slipway.serving.tracing import is_configured

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
        ("", {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "over grpc"),
    ],
)
def test_what_it_cannot_do_keeps_it_from_starting(
    endpoint: str, environment: Mapping[str, str], text: str
) -> None:
    with pytest.raises(StartupError, match=text) as caught:
        is_configured(endpoint, environment)
    assert caught.value.exit_code == 2
