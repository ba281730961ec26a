"""The status page as HTML: what it says, and that it says it as text whatever that is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from slipway.serving.status_html import status_html
from slipway.tests.monitoring import traffic
from slipway.tests.monitoring.watched_server import WatchedServer

ELEMENTS = {
    *("html", "head", "meta", "title", "link", "script", "body", "header", "main", "footer"),
    *("h1", "h2", "small", "span", "p", "dl", "div", "dt", "dd", "article", "figure", "svg"),
    *("figcaption", "output", "details", "summary", "table", "caption", "tbody", "tr", "th"),
    *("td", "a"),
}
VOID = {"meta", "link"}


class Page(HTMLParser):
    """A page that is well-formed, in its texts and attributes.

    Attributes:
      texts: what stands between tags.
      tags: the name and the attributes of each element.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedServer]:
    root = tmp_path_factory.mktemp("server")
    repository = traffic.write_repository(root / "repository")
    with WatchedServer(repository, root / "log") as process:
        yield process


def test_it_shows_models_states_and_contracts(server: WatchedServer) -> None:
    html, headers = traffic.get(server.monitoring + "/")
    page = Page(html)
    articles = [attributes for tag, attributes in page.tags if tag == "article"]
    assert [(item["data-model"], item["data-version"]) for item in articles] == [
        ("affine", "2"),
        ("affine", "1"),
    ]
    text = "\n".join(page.texts)
    for expected in ("unavailable", "not a valid message", "float32[batch, 4]", "batch", "1..8"):
        assert expected in text
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        page.tags
    )
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_it_needs_nothing_from_elsewhere(server: WatchedServer) -> None:
    html, _ = traffic.get(server.monitoring + "/")
    for tag, attributes in Page(html).tags:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "src"):
            if name in attributes:
                target = attributes[name]
                assert target is not None
                assert "/" not in target, tag
                body, headers = traffic.get(f"{server.monitoring}/{target}")
                assert body
                assert headers["Content-Type"].split(";")[0] in (
                    "text/css",
                    "text/javascript",
                    "text/plain",
                    "application/json",
                )


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1) | st.just("<script>'\""))
def test_whatever_it_is_told_is_shown_as_text(told: str) -> None:
    told = f"<{told}>&amp;\"'"
    page = Page(status_html(document(told)))
    assert {tag for tag, _ in page.tags} <= ELEMENTS
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "".join(page.texts).count(told) == 16
    assert [attributes["data-model"] for tag, attributes in page.tags if tag == "article"] == [
        told,
        told,
    ]


def test_the_document_is_json_of_the_same(server: WatchedServer) -> None:
    body, headers = traffic.get(server.monitoring + "/status.json")
    status = json.loads(body)
    assert headers["Content-Type"] == "application/json"
    assert [(item["version"], item["state"]) for item in status["models"]] == [
        (2, "UNAVAILABLE"),
        (1, "READY"),
    ]
    ready = status["models"][1]
    assert ready["execution"] == "graph"
    assert ready["execution_reason"] == (
        "compiled code is not used (--compiled=never); run by torch's interpreter"
    )
    assert Page(status_html(status)).tags


def document(told: str) -> dict[str, Any]:
    """Returns a status document that says `told` wherever a name or a text goes."""
    ready = {
        "name": told,
        "version": 1,
        "state": "READY",
        "reason": told,
        "digest": told,
        "device": told,
        "execution": told,
        "execution_reason": told,
        "load_seconds": 1.0,
        "contract": {
            "inputs": [[told, told]],
            "outputs": [[told, told]],
            "symbols": [[told, told]],
            "relations": [told],
            "batching": told,
        },
        "queue_requests": 0,
        "queue_bytes": 0,
        "running_batches": 0,
        "requests": {"OK": 1},
        "refusals": {told: 1},
        "batch_rows": 1.0,
        "latency_seconds": {"p50": None},
        "points": {"rate": [], "refused": [], "median": [], "slow": []},
    }
    return {
        "version": "1",
        "phase": "SERVING",
        "ready": True,
        "uptime_seconds": 1.0,
        "device": "cpu",
        "streams": 0,
        "request_bytes": 0,
        "refusals": {},
        "point_seconds": 2.0,
        "models": [ready, {"name": told, "version": 0, "state": "UNAVAILABLE", "reason": ""}],
    }
