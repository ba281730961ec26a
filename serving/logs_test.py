"""How much is logged; what a line looks like is tested in //tests/monitoring."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from slipway.serving.logs import LogControl, LogFormat


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    monkeypatch.setattr(logging.root, "handlers", [])
    level = logging.root.level
    yield io.StringIO()
    logging.root.setLevel(level)


def written(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_flood_is_counted_instead_of_written(stream: io.StringIO) -> None:
    LogControl("info", LogFormat.JSON, stream)
    logger = logging.getLogger("flood")
    calls = 0
    while '"left_out"' not in stream.getvalue():  # at the first line of the next second
        logger.info("refused", extra={"fields": {"call": calls}})
        calls += 1
        assert calls < 1_000_000
    lines = written(stream)
    left_out = lines[-1]["left_out"]
    assert isinstance(left_out, int)
    assert len(lines) + left_out == calls
    assert left_out > len(lines)
    assert lines[-1]["call"] == calls - 1
    for _ in range(1000):
        logger.info("refused")
    # Another place has a count of its own.
    logger.info("another")
    assert written(stream)[-1]["message"] == "another"


def test_everything_is_written_where_that_is_wanted(stream: io.StringIO) -> None:
    control = LogControl("info", LogFormat.JSON, stream)
    control.toggle_debug()
    for _ in range(1000):
        logging.getLogger("flood").info("refused")
    assert len(written(stream)) == 1000
