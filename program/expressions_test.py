from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway.program.expressions import (
    Add,
    All,
    AnyOf,
    Comparison,
    Condition,
    Constant,
    Expression,
    FloorDivide,
    Maximum,
    Minimum,
    Modulo,
    Multiply,
    Negation,
    SymbolReference,
    Unknown,
    compile_condition,
    holds,
    linear_form,
    symbols_of,
)

A, B = SymbolReference(0, "a"), SymbolReference(1, "b")
ONE = Comparison("==", A, Constant(1))


def _combined(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(inner, min_size=2, max_size=4).map(tuple)
    return st.one_of(
        st.builds(Add, several),
        st.builds(Multiply, several),
        st.builds(Minimum, several),
        st.builds(Maximum, several),
        st.builds(FloorDivide, inner, inner),
        st.builds(Modulo, inner, inner),
    )


expressions = st.recursive(
    st.one_of(st.sampled_from([A, B]), st.integers(-20, 20).map(Constant)), _combined, max_leaves=8
)
comparisons = st.builds(
    Comparison, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), expressions, expressions
)
conditions: st.SearchStrategy[Condition] = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(tuple).map(All),
        st.lists(inner, min_size=1, max_size=3).map(tuple).map(AnyOf),
        st.builds(Negation, inner),
    ),
    max_leaves=4,
)
points = st.tuples(st.integers(-50, 50), st.integers(-50, 50))


def _by_python(text: str, values: tuple[int, int]) -> object:
    return eval(text, {"min": min, "max": max}, {"a": values[0], "b": values[1]})


@given(expressions, points)
def test_an_expression_is_what_its_text_is_in_python(
    expression: Expression, values: tuple[int, int]
) -> None:
    try:
        expected = _by_python(str(expression), values)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            expression.evaluate(values)
    else:
        assert expression.evaluate(values) == expected


@given(conditions, points)
def test_a_condition_is_what_its_text_is_in_python(
    condition: Condition, values: tuple[int, int]
) -> None:
    try:
        expected = _by_python(str(condition), values)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            compile_condition(condition)(values)
    else:
        assert compile_condition(condition)(values) is expected


@given(expressions, points)
def test_a_linear_form_has_the_value_of_its_expression(
    expression: Expression, values: tuple[int, int]
) -> None:
    form = linear_form(expression)
    if form is not None:
        factor, symbol, offset = form
        assert factor != 0
        assert expression.evaluate(values) == factor * values[symbol.index] + offset


@pytest.mark.parametrize(
    ("expression", "form"),
    [
        (A, (1, A, 0)),
        (Multiply((Constant(8), A)), (8, A, 0)),
        (Multiply((A, Constant(8))), (8, A, 0)),
        (Add((Multiply((Constant(2), A)), Constant(1))), (2, A, 1)),
        (Multiply((Constant(3), Add((A, Constant(-2))))), (3, A, -6)),
        (Add((Constant(2), Add((A, Constant(1))))), (1, A, 3)),
        (Multiply((Constant(0), A)), None),
        (Add((A, A)), None),
        (Add((A, B)), None),
        (Multiply((A, B)), None),
        (FloorDivide(A, Constant(2)), None),
        (Constant(3), None),
    ],
)
def test_linear_forms(
    expression: Expression, form: tuple[int, SymbolReference, int] | None
) -> None:
    assert linear_form(expression) == form


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (Add((Multiply((Constant(8), A)), Constant(1))), "8*a + 1"),
        (Add((A, Constant(-1))), "a - 1"),
        (Multiply((Constant(-1), A)), "-a"),
        (Multiply((Constant(-1), A, B)), "(-1)*a*b"),
        (FloorDivide(Add((A, Constant(-3))), Constant(2)), "(a - 3) // 2"),
        (Maximum((A, Constant(1))), "max(a, 1)"),
        (Unknown(), "?"),
        (Comparison("==", Modulo(A, Constant(8)), Constant(0)), "a % 8 == 0"),
        (Negation(Comparison("<", A, B)), "not (a < b)"),
        (AnyOf((ONE, Comparison("==", A, Constant(2)))), "a in {1, 2}"),
        (AnyOf((ONE, Comparison("==", B, Constant(2)))), "(a == 1) or (b == 2)"),
    ],
)
def test_text_is_as_a_reader_would_write_it(node: object, text: str) -> None:
    assert str(node) == text


def test_a_size_that_depends_on_data_has_no_value() -> None:
    with pytest.raises(ValueError, match="depends on the inputs' values"):
        Add((Unknown(), Constant(1))).evaluate([])


def test_later_operands_of_a_condition_are_not_looked_at_once_it_is_decided() -> None:
    undefined = Comparison("==", Modulo(A, B), Constant(0))
    assert not compile_condition(All((Comparison("!=", B, Constant(0)), undefined)))([1, 0])
    assert compile_condition(AnyOf((Comparison("==", B, Constant(0)), undefined)))([1, 0])


def test_a_condition_that_divides_by_zero_does_not_hold() -> None:
    condition = Comparison("==", Modulo(A, B), Constant(0))
    assert holds(condition, [4, 2])
    assert not holds(condition, [4, 0])


def test_symbols_are_found_below_every_kind_of_node() -> None:
    condition = Negation(
        AnyOf((All((Comparison("<", Minimum((A, B)), Modulo(B, A)),)), Comparison("==", A, A)))
    )
    assert [item.name for item in symbols_of(condition)] == ["a", "b", "b", "a", "a", "a"]
