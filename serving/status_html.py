"""The status page: everything in it is text that is escaped; the plots are drawn by status.js."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["status_html"]

_PLOTS = (
    ("rate", "requests a second", "rate", "refused", "answered", "refused"),
    ("latency", "milliseconds", "median", "slow", "half take at most", "95 % take at most"),
)


def status_html(document: Mapping[str, Any]) -> str:
    """Returns the page for a document of `status_document`."""
    ready = "ready" if document["ready"] else "not ready"
    models = "\n".join(map(_model, document["models"])) or "<p>There is no model.</p>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Slipway: {ready}</title>
<link rel="stylesheet" href="status.css">
<script src="status.js" defer></script>
</head>
<body>
<header>
<h1>Slipway <span class="badge" data-state="{ready}" data-field="ready">{ready}</span></h1>
<p id="lost" role="alert" hidden>The server does not answer; what is below is old.</p>
{
        _facts(
            [
                ("phase", "phase", document["phase"].lower()),
                ("version", "version", document["version"]),
                ("device", "device", document["device"]),
                ("up", "uptime_seconds", _seconds(document["uptime_seconds"])),
                ("streams", "streams", str(document["streams"])),
                ("bytes of requests", "request_bytes", str(document["request_bytes"])),
            ]
        )
    }
{_refusals("Refused, for no model that is served", document["refusals"])}
</header>
<main>
{models}
</main>
<footer><a href="metrics">metrics</a> · <a href="status.json">this page as JSON</a></footer>
</body>
</html>
"""


def _model(entry: Mapping[str, Any]) -> str:
    name, version, state = entry["name"], entry["version"], entry["state"]
    title = escape(name) + (f" <small>version {version}</small>" if version else "")
    reason = f'<p class="reason">{escape(entry["reason"])}</p>' if entry["reason"] else ""
    body = _details(entry) if "contract" in entry else ""
    return f"""<article data-model="{escape(name)}" data-version="{version}">
<h2>{title} <span class="badge" data-state="{escape(state)}">{escape(state.lower())}</span></h2>
{reason}{body}
</article>"""


def _details(entry: Mapping[str, Any]) -> str:
    requests = entry["requests"]
    latency = entry["latency_seconds"]
    facts = [
        ("answered", "ok", str(requests["OK"])),
        ("refused", "refused", str(sum(requests.values()) - requests["OK"])),
        ("waiting", "queue_requests", str(entry["queue_requests"])),
        ("running batches", "running_batches", str(entry["running_batches"])),
        ("rows a batch", "batch_rows", f"{entry['batch_rows']:.1f}"),
        *((f"{key}, since loaded", key, _milliseconds(value)) for key, value in latency.items()),
    ]
    return f"""{_facts(facts)}
<div class="plots">{"".join(_plot(*plot) for plot in _PLOTS)}</div>
{_refusals("Refused", entry["refusals"])}
<details><summary>Contract</summary>
{_table("Inputs", entry["contract"]["inputs"])}
{_table("Outputs", entry["contract"]["outputs"])}
{_table("Symbols", entry["contract"]["symbols"])}
{_table("Relations", [[relation] for relation in entry["contract"]["relations"]])}
{_table("Batching", [[entry["contract"]["batching"]]] if entry["contract"]["batching"] else [])}
</details>
<details><summary>Program</summary>
{
        _table(
            "",
            [
                ["digest", entry["digest"]],
                ["device", entry["device"]],
                ["execution", f"{entry['execution']}: {entry['execution_reason']}"],
                ["loaded in", _seconds(entry["load_seconds"])],
            ],
        )
    }
</details>"""


def _plot(name: str, unit: str, first: str, second: str, first_text: str, second_text: str) -> str:
    return f"""<figure data-plot="{name}">
<svg viewBox="0 0 300 80" preserveAspectRatio="none" role="img" aria-label="{unit}"
 data-series="{first} {second}"></svg>
<figcaption>{unit}: <span class="first">{first_text} <output></output></span>,
<span class="second">{second_text} <output></output></span>; highest <output></output></figcaption>
</figure>"""


def _facts(rows: Iterable[tuple[str, str, str]]) -> str:
    items = "".join(
        f'<div><dt>{escape(label)}</dt><dd data-field="{field}">{escape(value)}</dd></div>'
        for label, field, value in rows
    )
    return f'<dl class="facts">{items}</dl>'


def _refusals(title: str, kinds: Mapping[str, int]) -> str:
    rows = sorted(kinds.items(), key=lambda item: -item[1])
    body = "".join(f"<tr><th>{escape(kind)}</th><td>{count}</td></tr>" for kind, count in rows)
    hidden = "" if rows else " hidden"
    return (
        f'<table class="refusals" data-refusals{hidden}><caption>{escape(title)}</caption>'
        f"<tbody>{body}</tbody></table>"
    )


def _table(title: str, rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{caption}<tbody>{body}</tbody></table>"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.3g} ms"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds / 3600:.1f} h"
