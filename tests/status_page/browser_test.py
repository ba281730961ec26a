"""The status page in a headless Chromium, where there is one.

$SLIPWAY_CHROMIUM names it; else it is looked for on
the PATH (Debian: chromium, or chromium-headless-shell).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slipway.tests.monitoring import traffic
from slipway.tests.monitoring.watched_server import WatchedServer
from slipway.tests.serving.clients import open_client
from slipway.tests.status_page.chromium import Chromium, find_chromium

BINARY = find_chromium()

pytestmark = pytest.mark.skipif(
    BINARY is None, reason="there is no Chromium on the PATH or in $SLIPWAY_CHROMIUM"
)

AFFINE = 'article[data-model="affine"][data-version="1"]'
POINTS = f"Array.from(document.querySelectorAll('{AFFINE} polyline'), line => line.points.length)"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WatchedServer]:
    repository = traffic.write_repository(tmp_path / "repository")
    with WatchedServer(repository, tmp_path / "log") as process:
        yield process


def browser(tmp_path: Path, *, width: int, dark: bool = False) -> Chromium:
    assert BINARY is not None
    return Chromium(BINARY, tmp_path / "profile", width=width, height=800, dark=dark)


def test_it_is_live(server: WatchedServer, tmp_path: Path) -> None:
    with (
        browser(tmp_path, width=1200) as page,
        open_client(server.address) as client,
    ):
        page.open(server.monitoring + "/")
        assert page.evaluate(f"document.querySelector('{AFFINE} [data-field=ok]').innerText") == "0"
        for _ in range(7):
            traffic.infer(client)
        traffic.refuse(client, rows=20)
        # Nobody reloads it.
        page.wait_for(f"document.querySelector('{AFFINE} [data-field=ok]').innerText === '7'")
        refusals = f"document.querySelector('{AFFINE} [data-refusals]')"
        page.wait_for(f"{refusals}.innerText.includes('RANGE')")
        assert page.evaluate(f"{refusals}.checkVisibility()")
        # Both plots, each of two lines: they get a point every two seconds.
        page.wait_for(f"{POINTS}.length === 4 && Math.min(...{POINTS}) >= 1")
        label = (
            f"document.querySelector('{AFFINE} [data-plot=rate] svg').getAttribute('aria-label')"
        )
        assert "answered" in page.evaluate(label)
        assert page.evaluate("document.title") == "Slipway: ready"
        assert page.messages == []  # no error of a script, nothing that the policy forbids

        assert server.stop() == 0
        page.wait_for("document.getElementById('lost').checkVisibility()")


def test_it_fits_a_phone(server: WatchedServer, tmp_path: Path) -> None:
    with browser(tmp_path, width=360) as page:
        page.open(server.monitoring + "/")
        page.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        columns = "document.querySelectorAll('.plots figure')"
        assert page.evaluate(f"new Set(Array.from({columns}, f => f.offsetLeft)).size") == 1
        size = "parseFloat(getComputedStyle(document.body).fontSize)"
        assert page.evaluate(size) >= 16


def test_it_is_dark_for_those_who_want_that(server: WatchedServer, tmp_path: Path) -> None:
    lightness = {}
    for dark in (False, True):
        with browser(tmp_path, width=800, dark=dark) as page:
            page.open(server.monitoring + "/")
            color = page.evaluate("getComputedStyle(document.body).backgroundColor")
            lightness[dark] = sum(map(int, color.removeprefix("rgb(").rstrip(")").split(",")))
    assert lightness[True] < 150 < 600 < lightness[False]
