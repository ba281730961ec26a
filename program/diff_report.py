"""The differences between two contracts, in words."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

from slipway.program.clauses import Clause, Differences, Verdict
from slipway.program.words import counted

__all__ = ["as_json", "as_text"]

_WIDTH = max(len(verdict.value) for verdict in Verdict)


def as_text(differences: Differences, *, python: bool) -> str:
    """Returns a line for each clause, and whether existing clients are broken.

    Args:
      differences: what has changed.
      python: whether there are clients that call the program as a Python object.
    """
    lines = []
    for method, clauses in differences.methods.items():
        lines.append(f"method {method}")
        for clause in clauses:
            note = "" if python or not clause.python_only else " (for callers in Python alone)"
            lines.append(f"  {clause.verdict.value:<{_WIDTH}}  {clause}{note}")
    lines += ["", _conclusion(differences, python=python)]
    return "\n".join(lines) + "\n"


def _conclusion(differences: Differences, *, python: bool) -> str:
    breaking = list(differences.breaking(python=python))
    if breaking:
        count = counted(len(breaking), "clause")
        return f"breaks existing clients: {count} {_verdicts(breaking)}"
    return (
        "compatible: every call that was allowed is allowed, and its results have the same names, "
        "dtypes and shapes"
    )


def _verdicts(clauses: list[Clause]) -> str:
    counts = collections.Counter(clause.verdict for clause in clauses)
    if len(counts) == 1:
        return next(iter(counts)).value
    return "(" + ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items()) + ")"


def as_json(differences: Differences, *, python: bool) -> dict[str, Any]:
    """Returns the differences as nested dicts and lists."""

    def clauses(given: tuple[Clause, ...]) -> Iterator[dict[str, Any]]:
        for clause in given:
            yield dataclasses.asdict(clause) | {"verdict": clause.verdict.value}

    return {
        "compatible": not any(differences.breaking(python=python)),
        "methods": {name: list(clauses(given)) for name, given in differences.methods.items()},
    }
