from __future__ import annotations

import os

import pytest

from slipway.serving.polling import read_while_polling


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "-event_engine_listener"),
        ("promise_based_http2", "promise_based_http2,-event_engine_listener"),
        ("event_engine_listener", "event_engine_listener"),
        ("-event_engine_listener", "-event_engine_listener"),
    ],
)
def test_what_the_environment_says_stays(
    monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    monkeypatch.setenv("GRPC_EXPERIMENTS", before)
    read_while_polling()
    assert os.environ["GRPC_EXPERIMENTS"] == after
