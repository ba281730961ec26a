"""Medians of things measured in turn, so that a drift of the machine's speed hits them alike."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["elapsed", "interleave", "print_figures"]


def elapsed(run: Callable[[], object]) -> float:
    """Returns how many seconds a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleave(
    subjects: Mapping[str, Callable[[], float]], *, rounds: int, warm_up: int = 1
) -> dict[str, float]:
    """Returns the median of what each subject reports, measured A B A B …

    Args:
      subjects: by name, functions that measure once and return the result.
      rounds: measurements of each that count.
      warm_up: measurements of each that do not.
    """
    results: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(warm_up + rounds):
        for name, measure in subjects.items():
            value = measure()
            if number >= warm_up:
                results[name].append(value)
    return {name: statistics.median(values) for name, values in results.items()}


def print_figures(figures: Mapping[str, float]) -> None:
    """Prints figures by name as one JSON object on a line, rounded to two places."""
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))
