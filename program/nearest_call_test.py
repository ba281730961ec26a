"""The legal call near a refused one."""

from __future__ import annotations

import timeit
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from slipway.program.contract import Contract, InputSpec, Relation, Symbol, TensorSpec
from slipway.program.expressions import (
    Add,
    Comparison,
    Condition,
    Constant,
    Expression,
    Modulo,
    Multiply,
    SymbolReference,
)
from slipway.program.nearest_call import nearest_call
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree

A, B = SymbolReference(0, "a"), SymbolReference(1, "b")
EIGHT = Constant(8)


def of(shape: Sequence[Expression], symbols: Sequence[Symbol], *relations: Condition) -> Contract:
    leaf = Tree(Kind.LEAF)
    return Contract(
        method="forward",
        symbols=tuple(symbols),
        inputs=(InputSpec("x", TensorSpec(ScalarType.FLOAT32, tuple(shape))),),
        input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (leaf,)), Tree(Kind.DICT))),
        parameters=("x",),
        outputs=(),
        output_tree=Tree(Kind.TUPLE),
        relations=tuple(map(Relation, relations)),
    )


def near(contract: Contract, *shape: int) -> tuple[int, ...] | None:
    found = nearest_call(contract, {"x": (ScalarType.FLOAT32, shape)})
    return None if found is None else found["x"]


def test_sizes_are_moved_into_range_and_form() -> None:
    contract = of(
        [A, Add((Multiply((EIGHT, B)), Constant(1))), Constant(3)],
        [Symbol("a", 1, 4), Symbol("b", 1, 4)],
    )
    assert near(contract, 9, 18, 2) == (4, 17, 3)
    assert near(contract, 0, 99, 3) == (1, 33, 3)
    assert near(contract, 2**70, 1, 3) == (4, 9, 3)


def test_a_call_of_another_rank_gets_the_smallest_shape() -> None:
    assert near(of([A, A], [Symbol("a", 2, 4)]), 3) == (2, 2)


def test_relations_hold_in_the_nearest_call() -> None:
    symbols = [Symbol("a", 1, None), Symbol("b", 1, None)]
    product = Comparison("==", Modulo(Multiply((A, B)), EIGHT), Constant(0))
    assert near(of([A, B], symbols, product), 3, 9) == (3, 8)
    # One alone cannot be moved so that this holds.
    equal = Comparison("==", A, Constant(5)), Comparison("==", B, Constant(7))
    assert near(of([A, B], symbols, *equal), 4, 9) == (5, 7)


def test_none_is_named_where_there_is_none() -> None:
    never = Comparison("<", A, Constant(1))
    assert near(of([A], [Symbol("a", 1, None)], never), 3) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=2, max_size=2), st.integers(1, 12))
def test_what_is_named_is_legal(shape: list[int], divisor: int) -> None:
    symbols = [Symbol("a", 1, 200), Symbol("b", 0, None)]
    multiple = Comparison("==", Modulo(Add((A, B)), Constant(divisor)), Constant(0))
    contract = of([A, B], symbols, multiple)
    found = near(contract, *shape)
    assert found is not None
    contract.check({"x": (ScalarType.FLOAT32, found)})


def test_offsets_may_be_larger_than_floats() -> None:
    large = Constant(2**850)
    contract = of([Add((Multiply((EIGHT, A)), large))], [Symbol("a", 1, 4)])
    assert near(contract, 3) == (8 + 2**850,)


def test_the_search_ends_where_all_sizes_are_fixed_or_a_try_takes_long() -> None:
    symbols = [SymbolReference(index, f"s{index}") for index in range(3000)]
    never = Comparison("==", Add(tuple(symbols)), Constant(0))
    for maximum in (1, 1000):
        contract = of(symbols, [Symbol(item.name, 1, maximum) for item in symbols], never)
        started = timeit.default_timer()
        assert near(contract, *(1 for _ in symbols)) is None
        assert timeit.default_timer() - started < 20
