"""What is found out about conditions: by algebra, at all points, at some."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from slipway.program.contract import Symbol
from slipway.program.expressions import (
    Add,
    All,
    AnyOf,
    Comparison,
    Condition,
    Constant,
    Expression,
    FloorDivide,
    Modulo,
    Multiply,
    Negation,
    SymbolReference,
)
from slipway.program.implication import TOO_MUCH, Answer, Domain

A, B, C = (SymbolReference(index, name) for index, name in enumerate("abc"))
ZERO = Constant(0)
FAR = 1 << 40


def domain(
    *ranges: tuple[int, int | None], assumptions: Sequence[Condition] = (), least: int = 0
) -> Domain:
    """Returns the domain of a, b and c, which have no maximum unless they have a range."""
    given = [*ranges, *[(least, None)] * (3 - len(ranges))]
    symbols = (Symbol(name, *each) for name, each in zip("abc", given, strict=True))
    return Domain(tuple(symbols), tuple(assumptions))


def is_(left: Expression, operator: str, right: Expression | int) -> Condition:
    return Comparison(operator, left, Constant(right) if isinstance(right, int) else right)


def both(*conditions: Condition) -> Condition:
    return All(conditions)


@pytest.mark.parametrize(
    ("assumptions", "condition"),
    [
        ([is_(FloorDivide(A, B), ">=", 1)], is_(FloorDivide(A, B), ">=", 1)),  # b may be zero
        ([], AnyOf((is_(A, "==", 5), is_(A, ">=", 0)))),
        ([is_(A, ">=", Add((B, Constant(3))))], is_(A, ">=", 3)),
        ([is_(A, "==", Add((B, Constant(3))))], is_(A, ">=", 3)),
        ([is_(Add((B, Constant(3))), "==", A)], is_(A, ">=", 3)),
        ([is_(B, "==", Add((A, Constant(3))))], is_(B, ">=", 3)),
        ([both(is_(A, "==", B), is_(B, "==", C))], is_(B, "==", A)),
        ([both(is_(A, "!=", B), is_(B, "!=", C))], is_(B, "!=", A)),
        ([is_(A, "==", B)], is_(Multiply((A, Constant(2))), "==", Multiply((Constant(2), B)))),
        ([is_(B, ">=", 1)], is_(B, "!=", 0)),
        ([is_(A, "<", B)], is_(Add((A, Constant(1))), "<=", B)),
    ],
)
def test_is_proven_of_sizes_without_end(
    assumptions: Sequence[Condition], condition: Condition
) -> None:
    assert domain(assumptions=assumptions).examine(condition).answer is Answer.ALWAYS


@pytest.mark.parametrize(
    "condition",
    [
        is_(A, ">=", 1),
        is_(A, "!=", 0),
        is_(A, "!=", FAR + 1),
        is_(Add((A, B)), "==", Add((B, A))),
        is_(Multiply((A, B)), "<=", 7 * FAR),
    ],
)
def test_is_proven_of_long_ranges(condition: Condition) -> None:
    assert domain((1, FAR), (7, 7)).examine(condition).answer is Answer.ALWAYS


SIGNS = {"<": {-1}, "<=": {-1, 0}, "==": {0}, "!=": {-1, 1}, ">=": {0, 1}, ">": {1}}
"""For each operator, the signs of a difference of which it holds."""


@pytest.mark.parametrize(("known", "asked"), list(itertools.product(SIGNS, SIGNS)))
def test_one_comparison_follows_from_another(known: str, asked: str) -> None:
    one = domain(assumptions=[is_(A, known, B)])
    for condition, holds in (
        (is_(A, asked, B), SIGNS[asked]),
        (Negation(is_(A, asked, B)), {-1, 0, 1} - SIGNS[asked]),
    ):
        finding = one.examine(condition)
        assert (finding.answer is Answer.ALWAYS) is (SIGNS[known] <= holds), condition


def test_that_one_of_two_holds_does_not_say_that_both_do() -> None:
    conditions = (is_(A, "==", 1), is_(B, "==", 1))
    finding = domain(assumptions=[AnyOf(conditions)]).examine(All(conditions))
    assert finding.answer is Answer.SOMETIMES


def test_symbols_that_are_tied_are_tried_together() -> None:
    twice = is_(A, "==", Multiply((Constant(2), B)))
    finding = domain((1, 50), (1, 50), assumptions=[twice]).examine(is_(Modulo(A, B), "==", 0))
    assert finding.answer is Answer.ALWAYS
    finding = domain((1, 50), (1, 50), assumptions=[twice]).examine(
        is_(Modulo(Multiply((A, A)), Constant(4)), "==", 0)
    )
    assert finding.answer is Answer.ALWAYS


def test_what_holds_without_the_ties_holds_with_them() -> None:
    of_eight = is_(Modulo(A, Constant(8)), "==", 0)
    finding = domain((0, 1000), assumptions=[of_eight, is_(A, "<=", B)]).examine(
        is_(Modulo(Multiply((A, A)), Constant(64)), "==", 0)
    )
    assert finding.answer is Answer.ALWAYS


@pytest.mark.parametrize(("operator", "bound"), [("<=", 10), (">=", 3990)])
def test_what_symbols_say_of_themselves_leaves_few_points(operator: str, bound: int) -> None:
    few = [is_(symbol, operator, bound) for symbol in (A, B)]
    finding = domain((1, 4000), (1, 4000), assumptions=few).examine(
        is_(Modulo(Multiply((A, B)), Constant(4007)), "!=", 0)  # a prime
    )
    assert finding.answer is Answer.ALWAYS


def test_everything_holds_where_there_are_no_sizes() -> None:
    finding = domain((1, 5), assumptions=[is_(A, ">=", 10)]).examine(is_(A, ">", B))
    assert finding.answer is Answer.ALWAYS


@pytest.mark.parametrize("largest", [5, None])
def test_a_condition_fails_where_it_divides_by_zero(largest: int | None) -> None:
    finding = domain((0, largest), (0, largest)).examine(is_(FloorDivide(A, B), ">=", 0))
    assert finding.answer is Answer.SOMETIMES
    assert finding.counterexample is not None
    assert finding.counterexample[1] == 0


def test_never_is_said_only_of_what_fails_at_every_point() -> None:
    square = Multiply((A, A))
    assert domain((0, 9)).examine(is_(Modulo(square, Constant(3)), "==", 2)).answer is Answer.NEVER
    finding = domain((0, 9)).examine(is_(Modulo(square, Constant(3)), "==", 0))
    assert (finding.answer, finding.counterexample) == (Answer.SOMETIMES, {0: 1})


@pytest.mark.parametrize(
    ("ranges", "assumptions", "condition", "counterexample"),
    [
        ([], [], is_(A, "!=", 123_457), {0: 123_457}),
        # By a factor of a constant,
        ([], [], is_(Multiply((A, Constant(7))), "!=", 7 * 123_457), {0: 123_457}),
        # at the end of a long range,
        ([(0, FAR), (0, FAR)], [], is_(Add((A, B)), "<", 2 * FAR), {0: FAR, 1: FAR}),
        # and at the first size beyond a constant that is legal.
        (
            [],
            [is_(Modulo(A, Constant(64)), "==", 0)],
            AnyOf((is_(A, "<", 1000), is_(A, ">", 1030))),
            {0: 1024},
        ),
    ],
)
def test_a_single_size_that_refutes_is_found(
    ranges: Sequence[tuple[int, int]],
    assumptions: Sequence[Condition],
    condition: Condition,
    counterexample: dict[int, int],
) -> None:
    finding = domain(*ranges, assumptions=assumptions).examine(condition)
    assert (finding.answer, finding.counterexample) == (Answer.SOMETIMES, counterexample)


def test_what_is_neither_is_undecided() -> None:
    squares = is_(Multiply((A, A)), "!=", Multiply((Constant(2), B, B)))
    finding = domain(least=1).examine(squares)
    assert finding.answer is Answer.UNDECIDED
    assert finding.tried > 0


def test_a_condition_of_too_many_parts_is_not_looked_at() -> None:
    holds = is_(A, ">=", 0)
    assert domain().examine(All((holds,) * 100)).answer is Answer.ALWAYS
    assert domain().examine(All((holds,) * 5000)) is TOO_MUCH
