"""What //bench:serve found, as a JSON object, a table and a plot."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

__all__ = ["Figures", "Load", "Point", "summary", "table", "write"]

_LIMITS = ("echo",)


class Point(NamedTuple):
    """Latency at a rate of requests a second, of the share of them that was answered."""

    rate: float
    p50_ms: float
    p99_ms: float
    answered: float


Load = dict[str, dict[str, list[Point]]]
"""By subject and system, latency against load."""


class Figures:
    """Measurements of every round; what it returns are medians."""

    def __init__(self) -> None:
        self._measured: defaultdict[tuple[str, int, str], dict[int, Sequence[float]]]
        self._measured = defaultdict(dict)
        self._compute: defaultdict[tuple[str, tuple[int, int, int]], list[tuple[float, float]]]
        self._compute = defaultdict(list)

    def add(
        self, subject: str, connections: int, system: str, number: int, measured: Sequence[float]
    ) -> None:
        """Takes requests a second, p50 and p99 in milliseconds, and the generator's share.

        `number` is the round's.
        """
        self._measured[subject, connections, system][number] = measured

    def add_compute(
        self, subject: str, how: tuple[int, int, int], rate: float, p50_ms: float
    ) -> None:
        """Takes rows a second, and the median of a call, in process.

        Args:
          subject: the model.
          how: of how many requests batches were made at a time, rows of a batch, and callers.
          rate: rows a second.
          p50_ms: of a call.
        """
        self._compute[subject, how].append((rate, p50_ms))

    def rows(self) -> list[tuple[str, int, str]]:
        """Returns what was measured: subject, connections and system."""
        return list(self._measured)

    def median(self, subject: str, connections: int, system: str) -> list[float]:
        """Returns requests a second, p50 and p99 in milliseconds, and the generator's share."""
        columns = zip(*self._measured[subject, connections, system].values(), strict=True)
        return [statistics.median(column) for column in columns]

    def rate(self, subject: str, connections: int, system: str) -> float:
        """Returns requests a second."""
        return self.median(subject, connections, system)[0]

    def of_wire(self, subject: str, connections: int, system: str) -> float:
        """Returns the median of the ratios to the echo, each within a round."""
        echo = self._measured[subject, connections, "echo"]
        return statistics.median(
            measured[0] / echo[number][0]
            for number, measured in self._measured[subject, connections, system].items()
        )

    def compute(self, subject: str, connections: int) -> tuple[float, tuple[int, int]]:
        """Returns rows a second in process, and by which rows of a batch and callers.

        Args:
          subject: the model.
          connections: as many requests as these have at a time are what batches are made of.
        """
        rates = {
            (rows, callers): statistics.median(rate for rate, _ in measured)
            for (name, (window, rows, callers)), measured in self._compute.items()
            if name == subject and window == connections
        }
        best = max(rates, key=rates.__getitem__)
        return rates[best], best

    def compute_p50_ms(self, subject: str) -> float:
        """Returns milliseconds of a call in process with one row, by one caller."""
        return statistics.median(
            p50_ms
            for (name, (_, rows, callers)), measured in self._compute.items()
            if name == subject and rows == callers == 1
            for _, p50_ms in measured
        )


def summary(figures: Figures, system: str = "slipway") -> dict[str, dict[str, dict[str, float]]]:
    """Returns a system's figures by subject and connections."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for subject, connections, name in figures.rows():
        if name != system:
            continue
        rate, p50_ms, p99_ms, _ = figures.median(subject, connections, name)
        compute, _ = figures.compute(subject, connections)
        result.setdefault(subject, {})[str(connections)] = {
            "rps": round(rate, 1),
            "p50_ms": round(p50_ms, 3),
            "p99_ms": round(p99_ms, 3),
            "of_wire": round(figures.of_wire(subject, connections, name), 3),
            "of_compute": round(rate / compute, 3),
        }
    return result


def table(figures: Figures) -> str:
    """Returns all figures as a table in Markdown, and what a single connection waits."""
    lines = [
        "| model | connections | server | requests/s | p50 ms | p99 ms | of the wire "
        "| of the computation (rows x callers) | load generator, cores |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for subject, connections, system in sorted(
        figures.rows(), key=lambda row: (row[0], row[1], row[2] != "slipway", row[2])
    ):
        rate, p50_ms, p99_ms, share = figures.median(subject, connections, system)
        compute, (batch, callers) = figures.compute(subject, connections)
        of_compute = "" if system in _LIMITS else f"{rate / compute:.2f} ({batch} x {callers})"
        lines.append(
            f"| {subject} | {connections} | {system} | {rate:,.0f} | {p50_ms:.2f} | {p99_ms:.2f} "
            f"| {figures.of_wire(subject, connections, system):.2f} | {of_compute} | {share:.2f} |"
        )
    lines.append("")
    for subject in dict.fromkeys(row[0] for row in figures.rows()):
        if (subject, 1, "slipway") not in figures.rows():
            continue
        echo = figures.median(subject, 1, "echo")[1]
        compute_ms = figures.compute_p50_ms(subject)
        p50_ms = figures.median(subject, 1, "slipway")[1]
        lines.append(
            f"{subject}: p50 at one connection {p50_ms:.2f} ms, {p50_ms / (echo + compute_ms):.2f} "
            f"times the echo's {echo:.2f} ms plus a call in process of {compute_ms:.2f} ms\n"
        )
    return "\n".join(lines)


def write(
    directory: Path, figures: Figures, load: Load, threads: int, flags: Sequence[str]
) -> None:
    """Writes serve.json, serve.md, serve.png and serve.svg."""
    directory.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(system for _, _, system in figures.rows())
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "grpcio": metadata.version("grpcio"),
        "threads": threads,
        "server_flags": list(flags),
    }
    found = about | {
        "models": summary(figures),
        "echo": summary(figures, "echo"),
        "peers": {
            system: summary(figures, system)
            for system in names
            if system != "slipway" and system not in _LIMITS
        },
        "latency_against_load": {
            subject: {
                system: [point._asdict() for point in points] for system, points in systems.items()
            }
            for subject, systems in load.items()
        },
    }
    (directory / "serve.json").write_text(json.dumps(found, indent=1) + "\n")
    text = (
        "# The server under load\n\nWritten by `./bazelw run //bench:serve`: "
        + ", ".join(f"{key.replace('_', ' ')} {value or 'none'}" for key, value in about.items())
        + f".\n\n{table(figures)}\n![Latency against load](serve.svg)\n"
    )
    (directory / "serve.md").write_text(text)
    _plot(directory, load)


def _plot(directory: Path, load: Mapping[str, Mapping[str, Sequence[Point]]]) -> None:
    # Takes a second to import, and only this needs it.
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "slipway"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(load), figsize=(5 * len(load), 4), squeeze=False)
    for axis, (subject, systems) in zip(axes[0], load.items(), strict=True):
        for system, every in systems.items():
            points = [point for point in every if point.answered > 0.99]
            rates = [point.rate for point in points]
            (line,) = axis.plot(rates, [point.p50_ms for point in points], marker=".", label=system)
            p99 = [point.p99_ms for point in points]
            axis.plot(rates, p99, linestyle="--", marker=".", color=line.get_color())
        axis.set(title=subject, xlabel="requests/s offered", yscale="log", xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("ms from when a request was due\n(line p50, dashes p99)")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(directory / "serve.png", dpi=110)
    figure.savefig(directory / "serve.svg", metadata={"Date": None})


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
