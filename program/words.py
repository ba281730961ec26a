"""Words of messages: articles before the names of types, and nouns after numbers."""

from __future__ import annotations

import re

__all__ = ["counted", "type_of", "with_article"]

_VOWEL = re.compile("[aeio]|nd|nn", re.IGNORECASE)
"""How a name begins that is spoken with a vowel: `int`, `OrderedDict`, `ndarray`. Types that begin
with u are `uint8` or `UserDict`."""


def with_article(name: str) -> str:
    """Returns `an int` for `int`, and `a Tensor` for `Tensor`."""
    return f"{'an' if _VOWEL.match(name) else 'a'} {name}"


def type_of(value: object) -> str:
    """Returns the type of a value with its article, such as `an int`."""
    return with_article(type(value).__name__)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number of things, such as `1 output` or `2 entries`.

    Args:
      number: how many there are.
      noun: for one of them.
      plural: for several; None for the noun with an s.
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
