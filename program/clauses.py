"""The result of comparing two contracts: clauses, each with a verdict."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Clause", "Differences", "Verdict"]


class Verdict(enum.Enum):
    """What a change of a clause means for a client of the old contract."""

    UNCHANGED = "unchanged"
    """It says the same, in whatever words."""

    WIDENED = "widened"
    """More is allowed, or more is promised."""

    NOTED = "noted"
    """It says something else that no client relies on: how fast a server can be, say."""

    NARROWED = "narrowed"
    """Some of what was allowed or promised is no longer."""

    INCOMPATIBLE = "incompatible"
    """Nothing of what the clause allowed or promised is left, or it means something else."""

    @property
    def breaks(self) -> bool:
        """Returns whether an existing client may fail."""
        return self in (Verdict.NARROWED, Verdict.INCOMPATIBLE)


@dataclass(frozen=True, slots=True)
class Clause:
    """One thing that a contract says, before and after.

    Attributes:
      verdict: what the change means.
      subject: what it is about: `input 'tokens' dimension 0`.
      old: what the old contract says; empty where it says nothing.
      new: the same of the new one.
      reason: an example of a call that is affected, or why nothing better can be said.
      python_only: it concerns those alone who call the program as a Python object, and no client
        that names tensors in requests.
    """

    verdict: Verdict
    subject: str
    old: str = ""
    new: str = ""
    reason: str = ""
    python_only: bool = False

    def __str__(self) -> str:
        said = (
            self.old
            if self.old == self.new
            else f"{self.old or '(none)'} -> {self.new or '(none)'}"
        )
        text = f"{self.subject}: {said}" if said else self.subject
        if self.reason:
            text += f"; {self.reason}"
        return text


@dataclass(frozen=True, slots=True)
class Differences:
    """Every clause of two programs' contracts, by method, in the order of the old program's."""

    methods: dict[str, tuple[Clause, ...]]

    def breaking(self, *, python: bool) -> Iterator[Clause]:
        """Yields the clauses that may break an existing client.

        Args:
          python: whether there are clients that call the program as a Python object.
        """
        for clauses in self.methods.values():
            for clause in clauses:
                if clause.verdict.breaks and (python or not clause.python_only):
                    yield clause
