"""Compares the files of two builds, and says where they differ."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path

__all__ = ["differences", "digest"]

_CONTEXT = 16


def digest(file: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def differences(expected: Mapping[str, Path], actual: Mapping[str, Path]) -> dict[str, str]:
    """Returns what is wrong with each file that is missing, is one too many, or differs.

    Args:
      expected: files by name.
      actual: those that should have the same names and bytes.
    """
    found = {name: "is missing" for name in expected.keys() - actual.keys()}
    found |= {name: "is there, and was not before" for name in actual.keys() - expected.keys()}
    for name in expected.keys() & actual.keys():
        if digest(expected[name]) != digest(actual[name]):
            found[name] = _difference(expected[name].read_bytes(), actual[name].read_bytes())
    return dict(sorted(found.items()))


def _difference(expected: bytes, actual: bytes) -> str:
    unequal = (
        offset
        for offset, (one, other) in enumerate(itertools.zip_longest(expected, actual))
        if one != other
    )
    first = next(unequal)
    number = 1 + sum(1 for _ in unequal)
    shown = slice(max(first - _CONTEXT, 0), first + _CONTEXT)
    return (
        f"has {len(expected)} and {len(actual)} bytes; {number} differ, from byte {first}: "
        f"{expected[shown]!r} and {actual[shown]!r}"
    )
