"""The sizes that a condition excludes, found without trying all of them."""

from __future__ import annotations

import itertools

import pytest

from slipway.export.exclusions import excluded_points
from slipway.program.contract import Symbol
from slipway.program.expressions import (
    Add,
    Comparison,
    Condition,
    Constant,
    FloorDivide,
    Modulo,
    Multiply,
    SymbolReference,
    holds,
)

A, B = SymbolReference(0, "a"), SymbolReference(1, "b")
PRODUCT = Multiply((A, B))


@pytest.mark.parametrize(
    "condition",
    [
        Comparison("!=", A, Constant(3)),
        Comparison("<", Multiply((Constant(3), A)), Constant(118)),
        Comparison("!=", PRODUCT, Constant(36)),
        Comparison(">", PRODUCT, Constant(4)),
        Comparison("!=", Modulo(A, Constant(5)), Constant(2)),
        Comparison("!=", Multiply((A, A)), Constant(16)),
        Comparison("!=", Add((PRODUCT, Multiply((Constant(-4), B)))), Constant(9)),
        Comparison(">", FloorDivide(A, Add((B, Constant(-3)))), Constant(-1)),
        Comparison(">=", Add((A, B)), Constant(3)),
        Comparison("<=", PRODUCT, Constant(1500)),
    ],
)
@pytest.mark.parametrize("least", [0, 1])
def test_it_finds_what_trying_all_sizes_finds(condition: Condition, least: int) -> None:
    symbols = [Symbol("a", least, 40), Symbol("b", least, 40)]
    involved = sorted({index for index in (0, 1) if "ab"[index] in str(condition)})
    expected = []
    for point in itertools.product(range(least, 41), repeat=len(involved)):
        values = dict(zip(involved, point, strict=True))
        if not holds(condition, values):
            expected.append(tuple(values.items()))
    found = excluded_points(condition, symbols)
    # Of one dimension, more than two are too many.
    assert found == expected or (found == [] and len(expected) > 2)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Comparison("!=", PRODUCT, Constant(6)), [(1, 6), (2, 3), (3, 2), (6, 1)]),
        (Comparison("!=", PRODUCT, Constant(1369)), [(1, 1369), (37, 37), (1369, 1)]),
        (Comparison(">", PRODUCT, Constant(1)), [(1, 1)]),
        # Without end, or too many.
        (Comparison("!=", A, B), []),
        (Comparison("<", PRODUCT, Constant(9)), []),
        (Comparison("!=", PRODUCT, Constant(5040)), []),
        (Comparison("==", PRODUCT, Constant(1)), []),
    ],
)
def test_sizes_may_have_no_maximum(condition: Condition, expected: list[tuple[int, int]]) -> None:
    found = excluded_points(condition, [Symbol("a", 1, None), Symbol("b", 1, None)])
    assert found == [((0, a), (1, b)) for a, b in expected]
