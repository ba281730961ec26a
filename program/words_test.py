"""Articles and plurals of messages."""

from __future__ import annotations

import numpy as np
import pytest

from slipway.program.words import counted, type_of, with_article


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "an int"),
        (1.0, "a float"),
        ({}, "a dict"),
        (np.ones(1), "an ndarray"),
        (None, "a NoneType"),
    ],
)
def test_a_type_has_the_article_that_is_spoken(value: object, text: str) -> None:
    assert type_of(value) == text


@pytest.mark.parametrize("name", ["an output", "an OrderedDict", "a uint8", "a UserDict"])
def test_so_does_a_name(name: str) -> None:
    assert with_article(name.split()[1]) == name


def test_one_of_a_thing_is_no_plural() -> None:
    assert counted(0, "output") == "0 outputs"
    assert counted(1, "output") == "1 output"
    assert counted(2, "output") == "2 outputs"
    assert counted(1, "entry", "entries") == "1 entry"
    assert counted(2, "entry", "entries") == "2 entries"
