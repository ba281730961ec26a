"""How much work finding something out may take, where some questions would take for ever."""

from __future__ import annotations

__all__ = ["TooMuchWorkError", "Work"]

_STEPS = 1 << 26
"""How many steps there are: evaluations of one part of a condition, some ten seconds of them.

To compare two programs as programs are takes a thousandth of that.
"""


class TooMuchWorkError(Exception):
    """There are no steps left."""


class Work:
    """What is left of the steps that may be taken, counted alike on every machine."""

    def __init__(self) -> None:
        self._left = _STEPS

    def take(self, steps: int) -> None:
        """Takes steps from what is left. Raises: TooMuchWorkError, from then on always."""
        self._left -= steps
        if self._left < 0:
            raise TooMuchWorkError
