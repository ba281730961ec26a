"""Comparing contracts: against all calls for small pairs, and clause by clause."""

from __future__ import annotations

import itertools
import signal
import timeit
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from slipway.program.clauses import Verdict
from slipway.program.compatibility import compare
from slipway.program.contract import (
    Contract,
    InputSpec,
    OutputSpec,
    PythonValue,
    Relation,
    Symbol,
    TensorSpec,
    UnboundSymbolError,
)
from slipway.program.contract_codec import contract_from_proto, contract_to_proto
from slipway.program.errors import ContractViolation, CorruptProgramError
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
)
from slipway.program.scalar_types import ScalarType
from slipway.program.sizes import SizeError
from slipway.program.trees import Kind, Tree

LEAF = Tree(Kind.LEAF)
A, B = SymbolReference(0, "a"), SymbolReference(1, "b")
NAMES = "ab"
LARGEST = 6
"""The largest value of a drawn symbol with a maximum."""

BEYOND = 30
"""As far as symbols without a maximum are tried."""

Call = dict[str, tuple[ScalarType, Sequence[int]]]


def contract_of(
    symbols: Sequence[Symbol],
    shapes: Mapping[str, Sequence[Expression]],
    relations: Sequence[Condition] = (),
    outputs: Mapping[str, Sequence[Expression]] | None = None,
    batch: int | None = None,
) -> Contract:
    names = tuple(shapes)
    results = outputs or {}
    return Contract(
        method="forward",
        symbols=tuple(symbols),
        inputs=tuple(
            InputSpec(name, TensorSpec(ScalarType.FLOAT32, tuple(shape)))
            for name, shape in shapes.items()
        ),
        input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF,) * len(names)), Tree(Kind.DICT))),
        parameters=names,
        outputs=tuple(
            OutputSpec(name, TensorSpec(ScalarType.FLOAT32, tuple(shape)))
            for name, shape in results.items()
        ),
        output_tree=Tree(Kind.TUPLE, (LEAF,) * len(results)),
        relations=tuple(map(Relation, relations)),
        batch_symbol=batch,
    )


def verdicts(old: Contract, new: Contract) -> dict[str, Verdict]:
    """Returns the verdict on each clause that has changed."""
    clauses = compare({"forward": old}, {"forward": new}).methods["forward"]
    return {
        clause.subject: clause.verdict
        for clause in clauses
        if clause.verdict is not Verdict.UNCHANGED and not clause.python_only
    }


def is_compatible(old: Contract, new: Contract) -> bool:
    return not list(compare({"forward": old}, {"forward": new}).breaking(python=False))


# Against all calls --------------------------------------------------------------------------------


def expressions(count: int) -> st.SearchStrategy[Expression]:
    leaves = st.one_of(st.sampled_from([A, B][:count]), st.integers(-1, 5).map(Constant))

    def combined(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        pairs = st.tuples(inner, inner)
        return st.one_of(
            *(pairs.map(kind) for kind in (Add, Multiply, Minimum, Maximum)),
            *(st.builds(kind, inner, inner) for kind in (FloorDivide, Modulo)),
        )

    return st.recursive(leaves, combined, max_leaves=3)


def conditions(count: int) -> st.SearchStrategy[Condition]:
    inner = expressions(count)
    comparisons = st.builds(
        Comparison, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), inner, inner
    )
    several = st.tuples(comparisons, comparisons)
    return st.one_of(comparisons, several.map(All), several.map(AnyOf), comparisons.map(Negation))


@st.composite
def symbols(draw: st.DrawFn, name: str) -> Symbol:
    minimum = draw(st.integers(0, 3))
    width = draw(st.one_of(st.none(), st.integers(0, LARGEST - minimum)))
    return Symbol(name, minimum, None if width is None else minimum + width)


def determining(symbol: Expression) -> st.SearchStrategy[Expression]:
    """Sizes that determine a symbol."""
    doubled = Multiply((Constant(2), symbol))
    return st.sampled_from(
        [symbol, symbol, symbol, doubled, Add((symbol, Constant(1))), Add((doubled, Constant(1)))]
    )


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    count = draw(st.integers(1, 2))
    shapes: dict[str, list[Expression]] = {"x": [], "y": []}
    for reference in (A, B)[:count]:
        shapes[draw(st.sampled_from("xy"))].append(draw(determining(reference)))
    for _ in range(draw(st.integers(0, 2))):
        shapes[draw(st.sampled_from("xy"))].append(draw(expressions(count)))
    try:
        return contract_of(
            [draw(symbols(name)) for name in NAMES[:count]],
            shapes,
            draw(st.lists(conditions(count), max_size=2)),
            {"out": draw(st.lists(expressions(count), max_size=2))},
            draw(st.one_of(st.none(), st.integers(0, count - 1))),
        )
    except SizeError:
        reject()


@st.composite
def variants(draw: st.DrawFn, contract: Contract) -> Contract:
    """The same contract with a thing or two changed."""
    count = len(contract.symbols)
    for _ in range(draw(st.integers(1, 2))):
        try:
            match draw(st.integers(0, 5)):
                case 0:
                    place = draw(st.integers(0, count - 1))
                    changed = list(contract.symbols)
                    changed[place] = draw(symbols(changed[place].name))
                    contract = replace(contract, symbols=tuple(changed))
                case 1:
                    shapes = {
                        name: list(spec.shape) for name, spec in contract.tensor_inputs.items()
                    }
                    name = draw(st.sampled_from([key for key, shape in shapes.items() if shape]))
                    place = draw(st.integers(0, len(shapes[name]) - 1))
                    shapes[name][place] = draw(
                        st.one_of(expressions(count), *map(determining, (A, B)[:count]))
                    )
                    contract = replace(
                        contract,
                        inputs=tuple(
                            InputSpec(key, TensorSpec(ScalarType.FLOAT32, tuple(shape)))
                            for key, shape in shapes.items()
                        ),
                    )
                case 2:
                    added = Relation(draw(conditions(count)))
                    contract = replace(contract, relations=(*contract.relations, added))
                case 3:
                    contract = replace(contract, relations=contract.relations[1:])
                case 4:
                    shape = tuple(draw(st.lists(expressions(count), max_size=2)))
                    output = OutputSpec("out", TensorSpec(ScalarType.FLOAT32, shape))
                    contract = replace(contract, outputs=(output,))
                case 5:
                    contract = replace(contract, relations=tuple(reversed(contract.relations)))
        except (UnboundSymbolError, SizeError):
            continue
    return contract


def calls(contract: Contract) -> Iterator[tuple[Call, tuple[int, ...]]]:
    """Yields every legal call, as far as symbols are tried."""
    ranges = [
        range(item.minimum, 1 + (BEYOND if item.maximum is None else item.maximum))
        for item in contract.symbols
    ]
    for values in itertools.product(*ranges):
        try:
            call: Call = {
                name: (spec.dtype, [size.evaluate(values) for size in spec.shape])
                for name, spec in contract.tensor_inputs.items()
            }
        except ZeroDivisionError:
            continue
        if all(size >= 0 for _, shape in call.values() for size in shape) and is_taken(
            contract, call
        ):
            yield call, values


def is_taken(contract: Contract, call: Call) -> bool:
    try:
        contract.check(call)
    except ContractViolation:
        return False
    return True


def results(contract: Contract, values: Sequence[int]) -> object:
    try:
        return contract.output_shapes(values)
    except CorruptProgramError:
        return None


def broken_call(old: Contract, new: Contract) -> Call | None:
    """Returns a call that is legal under `old`, and refused or answered otherwise by `new`."""
    for call, values in calls(old):
        if not is_taken(new, call):
            return call
        promised = results(old, values)
        if promised is not None and results(new, new.check(call)) != promised:
            return call
    return None


slow = settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    deadline=None,
)


@slow
@given(st.data())
def test_no_call_of_an_existing_client_breaks_where_nothing_is_said_to_break(
    data: st.DataObject,
) -> None:
    old = data.draw(contracts())
    new = data.draw(st.one_of(variants(old), variants(old), contracts()))
    if is_compatible(old, new):
        assert broken_call(old, new) is None


@slow
@given(st.data())
def test_other_names_for_symbols_change_nothing(data: st.DataObject) -> None:
    old = data.draw(contracts())
    new = renamed(old, {"a": "rows", "b": "columns"})
    clauses = compare({"forward": old}, {"forward": new}).methods["forward"]
    assert {clause.verdict for clause in clauses} == {Verdict.UNCHANGED}


def renamed(contract: Contract, names: Mapping[str, str]) -> Contract:
    """Returns the contract with other names for its symbols, in expressions too."""
    message = contract_to_proto(contract)
    for symbol in message.symbols:
        symbol.name = names[symbol.name]
    return contract_from_proto(message)


# Clause by clause ---------------------------------------------------------------------------------

EIGHT = Constant(8)
BATCH = Symbol("a", 1, 64)
IS_MULTIPLE = Comparison("==", Modulo(A, EIGHT), Constant(0))


def of(
    *shape: Expression, symbols: Sequence[Symbol] = (BATCH,), relations: Sequence[Condition] = ()
) -> Contract:
    """A contract of one input 'x'."""
    return contract_of(symbols, {"x": shape}, relations)


ONE_DIMENSION = "input 'x' dimension 0"


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (of(A), of(A, symbols=[Symbol("a", 0, 64)]), "widened"),
        (of(A), of(A, symbols=[Symbol("a", 1, None)]), "widened"),
        (of(A), of(A, symbols=[Symbol("a", 1, 63)]), "narrowed"),
        (of(A), of(A, symbols=[Symbol("a", 2, None)]), "narrowed"),
        (of(A, symbols=[Symbol("a", 1, None)]), of(A), "narrowed"),
        (of(A), of(A, symbols=[Symbol("a", 65, None)]), "incompatible"),
        (of(A), of(Constant(3), symbols=[]), "narrowed"),
        (of(A), of(Constant(65), symbols=[]), "incompatible"),
        (of(Constant(3), symbols=[]), of(A), "widened"),
        (of(Constant(65), symbols=[]), of(A), "incompatible"),
        (of(Constant(3), symbols=[]), of(Constant(4), symbols=[]), "incompatible"),
        (of(Multiply((EIGHT, A))), of(A, symbols=[Symbol("a", 8, 512)]), "widened"),
        (of(A), of(Multiply((EIGHT, A))), "narrowed"),
        # Both ends agree, and nothing between them but the multiples.
        (
            of(A, symbols=[Symbol("a", 8, 512)]),
            of(Multiply((EIGHT, A))),
            "narrowed",
        ),
        (of(Multiply((EIGHT, A))), of(Multiply((A, EIGHT))), "unchanged"),
        (of(Multiply((Constant(16), A))), of(Multiply((EIGHT, A))), "narrowed"),
        (
            of(Multiply((Constant(16), A)), symbols=[Symbol("a", 1, None)]),
            of(Multiply((EIGHT, A)), symbols=[Symbol("a", 1, None)]),
            "widened",
        ),
        # What is said by a relation in one is said by the form of the size in the other.
        (
            of(A, symbols=[Symbol("a", 8, None)], relations=[IS_MULTIPLE]),
            of(Multiply((EIGHT, A)), symbols=[Symbol("a", 1, None)]),
            "unchanged",
        ),
        (
            of(A, symbols=[Symbol("a", 1, None)], relations=[IS_MULTIPLE]),
            of(Multiply((EIGHT, A)), symbols=[Symbol("a", 1, None)]),
            "unchanged",
        ),
    ],
)
def test_sizes_are_compared_by_what_they_allow(old: Contract, new: Contract, verdict: str) -> None:
    assert verdicts(old, new).get(ONE_DIMENSION, Verdict.UNCHANGED) is Verdict(verdict)
    assert is_compatible(old, new) is (verdict in ("widened", "unchanged"))


def test_a_broken_clause_shows_a_call_that_was_allowed() -> None:
    clauses = compare(
        {"forward": of(A, B, symbols=[BATCH, Symbol("b", 1, 9)])},
        {"forward": of(A, B, symbols=[Symbol("rows", 1, 16), Symbol("b", 1, 9)])},
    ).methods["forward"]
    (text,) = [str(clause) for clause in clauses if clause.verdict.breaks]
    assert text == "input 'x' dimension 0: a in 1..64 -> rows in 1..16; was allowed: a = 17"


def test_relations_are_compared_by_what_they_leave() -> None:
    even = Comparison("==", Modulo(A, Constant(2)), Constant(0))
    assert verdicts(of(A), of(A, relations=[IS_MULTIPLE])) == {"relation": Verdict.NARROWED}
    assert verdicts(of(A, relations=[IS_MULTIPLE]), of(A)) == {"relation": Verdict.WIDENED}
    assert verdicts(of(A, relations=[IS_MULTIPLE]), of(A, relations=[even])) == {
        "relation": Verdict.WIDENED
    }
    # It holds for all calls as it is.
    assert verdicts(of(A), of(A, relations=[Comparison("<", A, Constant(65))])) == {}


def test_a_relation_is_the_same_however_it_is_written() -> None:
    symbols = [Symbol("a", 0, None), Symbol("b", 0, None)]
    less = of(A, B, symbols=symbols, relations=[Comparison("<", A, B)])
    greater = of(A, B, symbols=symbols, relations=[Comparison(">=", B, Add((A, Constant(1))))])
    not_less = of(A, B, symbols=symbols, relations=[Negation(Comparison("<=", B, A))])
    assert verdicts(less, greater) == verdicts(greater, less) == {}
    assert verdicts(less, not_less) == verdicts(not_less, less) == {}
    assert verdicts(less, of(A, B, symbols=symbols, relations=[Comparison("<=", A, B)])) == {
        "relation": Verdict.WIDENED
    }


def test_a_relation_that_may_divide_by_zero_is_not_taken_for_one_that_holds() -> None:
    symbols = [Symbol("a", 0, None), Symbol("b", 0, None)]
    same = Comparison("==", FloorDivide(A, B), FloorDivide(A, B))
    assert verdicts(of(A, B, symbols=symbols), of(A, B, symbols=symbols, relations=[same])) == {
        "relation": Verdict.NARROWED
    }


def test_what_cannot_be_shown_counts_as_broken_and_says_so() -> None:
    symbols = [Symbol("a", 1, None), Symbol("b", 1, None)]
    squares = Comparison("!=", Multiply((A, A)), Multiply((Constant(2), Multiply((B, B)))))
    clauses = compare(
        {"forward": of(A, B, symbols=symbols)},
        {"forward": of(A, B, symbols=symbols, relations=[squares])},
    ).methods["forward"]
    (clause,) = [clause for clause in clauses if clause.verdict.breaks]
    assert clause.verdict is Verdict.NARROWED
    assert "it cannot be shown that all calls are still allowed" in clause.reason


def test_two_symbols_that_become_one() -> None:
    symbols = [BATCH, Symbol("b", 1, 64)]
    two, one = of(A, B, symbols=symbols), of(A, A)
    assert verdicts(two, one) == {"input 'x' dimension 1": Verdict.NARROWED}
    assert verdicts(one, two) == {"input 'x' dimension 1": Verdict.WIDENED}


def test_inputs_that_come_go_or_are_renamed() -> None:
    both = contract_of([BATCH], {"x": [A], "y": [A]})
    one, other = contract_of([BATCH], {"x": [A]}), contract_of([BATCH], {"z": [A]})
    assert verdicts(both, one) == {"input 'y'": Verdict.INCOMPATIBLE}
    assert verdicts(one, both) == {"input 'y'": Verdict.INCOMPATIBLE}
    assert verdicts(one, other) == {
        "input 'x'": Verdict.INCOMPATIBLE,
        "input 'z'": Verdict.INCOMPATIBLE,
    }


def test_another_dtype_or_rank() -> None:
    old = of(A)
    half = replace(old, inputs=(InputSpec("x", TensorSpec(ScalarType.FLOAT16, (A,))),))
    assert verdicts(old, half) == {"input 'x'": Verdict.INCOMPATIBLE}
    assert verdicts(old, of(A, Constant(1))) == {"input 'x'": Verdict.INCOMPATIBLE}


def giving(outputs: Mapping[str, Sequence[Expression]], batch: int | None = None) -> Contract:
    return contract_of([BATCH], {"x": [A]}, outputs=outputs, batch=batch)


OUTPUT = "output 'y'"


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ([A], [Constant(3)], {OUTPUT: Verdict.INCOMPATIBLE}),
        ([A], [Add((A, Constant(1)))], {OUTPUT: Verdict.INCOMPATIBLE}),
        ([A], [A, Constant(1)], {OUTPUT: Verdict.INCOMPATIBLE}),
        ([A], [Unknown()], {OUTPUT: Verdict.INCOMPATIBLE}),
        ([Unknown()], [A], {OUTPUT: Verdict.WIDENED}),
        ([Unknown()], [Unknown()], {}),
        # The same for every size in range, though not in general.
        ([A], [Minimum((A, Constant(64)))], {}),
        ([A], [Minimum((A, Constant(63)))], {OUTPUT: Verdict.INCOMPATIBLE}),
    ],
)
def test_outputs_must_be_as_they_were(
    old: Sequence[Expression], new: Sequence[Expression], changed: dict[str, Verdict]
) -> None:
    assert verdicts(giving({"y": old}), giving({"y": new})) == changed


def test_outputs_that_come_and_go() -> None:
    one, two = giving({"y": [A]}), giving({"y": [A], "z": [A]})
    assert verdicts(one, two) == {"output 'z'": Verdict.WIDENED}
    assert verdicts(two, one) == {"output 'z'": Verdict.INCOMPATIBLE}
    # One who takes results apart in Python sees another tuple.
    assert list(compare({"f": one}, {"f": two}).breaking(python=True))


def test_a_batch_symbol_is_a_promise() -> None:
    with_batch, without = giving({}, batch=0), giving({})
    assert verdicts(without, with_batch) == {"batch symbol": Verdict.WIDENED}
    assert verdicts(with_batch, without) == {"batch symbol": Verdict.NARROWED}
    symbols = [BATCH, Symbol("b", 1, 64)]
    first, second = (contract_of(symbols, {"x": [A, B]}, batch=index) for index in (0, 1))
    assert verdicts(first, second) == {"batch symbol": Verdict.INCOMPATIBLE}


def test_methods_that_come_and_go() -> None:
    one, two = {"forward": of(A)}, {"forward": of(A), "encode": of(A)}
    assert not list(compare(one, two).breaking(python=True))
    (clause,) = compare(two, one).breaking(python=False)
    assert (clause.subject, clause.verdict) == ("method 'encode'", Verdict.INCOMPATIBLE)


def with_constant(value: PythonValue) -> Contract:
    contract = contract_of([BATCH], {"x": [A], "mode": []})
    return replace(contract, inputs=(contract.inputs[0], InputSpec("mode", constant=value)))


def test_arguments_that_are_no_tensors() -> None:
    assert verdicts(with_constant("mean"), with_constant("sum")) == {
        "input 'mode'": Verdict.INCOMPATIBLE
    }
    assert verdicts(with_constant(1), with_constant(True)) == {"input 'mode'": Verdict.INCOMPATIBLE}
    assert verdicts(with_constant(float("nan")), with_constant(float("nan"))) == {}
    tensor = TensorSpec(ScalarType.FLOAT32, ())
    absent = with_constant(None)
    present = replace(absent, inputs=(absent.inputs[0], InputSpec("mode", tensor)))
    for old, new in ((absent, present), (present, absent)):
        assert verdicts(old, new) == {"input 'mode'": Verdict.INCOMPATIBLE}
    # Requests do not hold it, calls in Python do.
    for old, new in ((of(A), with_constant("mean")), (with_constant("mean"), of(A))):
        differences = compare({"forward": old}, {"forward": new})
        assert not list(differences.breaking(python=False))
        assert list(differences.breaking(python=True))


def test_none_in_the_place_of_a_size_is_another_output() -> None:
    size, none = (
        replace(of(A), outputs=(output,), output_tree=Tree(Kind.TUPLE, (LEAF,)))
        for output in (OutputSpec("y", integer=A), OutputSpec("y", constant=None))
    )
    for old, new in ((size, none), (none, size)):
        assert verdicts(old, new) == {"output 'y'": Verdict.INCOMPATIBLE}


def in_python(contract: Contract, inputs: Tree, outputs: Tree = LEAF) -> Contract:
    return replace(
        contract,
        inputs=(InputSpec("x.a", contract.inputs[0].tensor),),
        input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (inputs,)), Tree(Kind.DICT))),
        output_tree=outputs,
    )


def test_nesting_counts_for_callers_in_python() -> None:
    contract = giving({"y": [A]})
    a_dict = Tree(Kind.DICT, (LEAF,), ("a",))
    a_tuple = Tree(Kind.TUPLE, (LEAF,))
    old = {"forward": in_python(contract, a_dict)}
    for new in (in_python(contract, a_tuple), in_python(contract, a_dict, a_tuple)):
        assert not list(compare(old, {"forward": new}).breaking(python=False))
        (clause,) = compare(old, {"forward": new}).breaking(python=True)
        assert clause.verdict is Verdict.INCOMPATIBLE
    assert not list(compare(old, old).breaking(python=True))


def taking(by_position: str, by_keyword: str) -> Contract:
    """A contract of arguments that are one tensor each, with names of one letter."""
    contract = contract_of([], {name: () for name in by_position + by_keyword})
    positional = Tree(Kind.TUPLE, (LEAF,) * len(by_position))
    keyword = Tree(Kind.DICT, (LEAF,) * len(by_keyword), tuple(by_keyword))
    tree = Tree(Kind.TUPLE, (positional, keyword))
    return replace(contract, input_tree=tree, parameters=tuple(by_position))


def returning(tree: Tree, *names: str) -> Contract:
    return replace(contract_of([], {}, outputs={name: () for name in names}), output_tree=tree)


def dict_of(*keys: str) -> Tree:
    return Tree(Kind.DICT, (LEAF,) * len(keys), keys)


@pytest.mark.parametrize(
    ("old", "new", "verdict", "reason"),
    [
        (taking("xy", ""), taking("xy", ""), Verdict.UNCHANGED, ""),
        (taking("xy", ""), taking("yx", ""), Verdict.INCOMPATIBLE, "by position are others"),
        (taking("xy", ""), taking("x", "y"), Verdict.INCOMPATIBLE, "by position are others"),
        (taking("x", "y"), taking("xy", ""), Verdict.WIDENED, "more can be given by position"),
        (taking("x", ""), taking("xy", ""), Verdict.INCOMPATIBLE, "all arguments must be given"),
        (
            returning(dict_of("a", "b"), "a", "b"),
            returning(dict_of("a", "b"), "b", "a"),
            Verdict.INCOMPATIBLE,
            "a result is in the place of another",
        ),
        (
            returning(dict_of("a"), "a"),
            returning(dict_of("a", "b"), "a", "b"),
            Verdict.WIDENED,
            "dicts have further keys",
        ),
        (
            returning(dict_of("a", "b"), "a", "b"),
            returning(dict_of("a"), "a"),
            Verdict.INCOMPATIBLE,
            "results are nested in another way",
        ),
    ],
)
def test_how_calls_in_python_are_written_counts_for_them(
    old: Contract, new: Contract, verdict: Verdict, reason: str
) -> None:
    clauses = compare({"forward": old}, {"forward": new}).methods["forward"]
    changed = [
        clause
        for clause in clauses
        if clause.python_only and clause.verdict is not Verdict.UNCHANGED
    ]
    assert [clause.verdict for clause in changed] == [verdict] * (verdict is not Verdict.UNCHANGED)
    assert all(reason in clause.reason for clause in changed)


def test_a_layout_that_is_required_counts_for_callers_in_python() -> None:
    any_layout, contiguous = of(A), replace(of(A), contiguous=True)
    differences = compare({"f": any_layout}, {"f": contiguous})
    assert not list(differences.breaking(python=False))
    (clause,) = differences.breaking(python=True)
    assert clause.verdict is Verdict.NARROWED
    assert not list(compare({"f": contiguous}, {"f": any_layout}).breaking(python=True))


def test_large_ranges_are_compared_at_once() -> None:
    symbols = [Symbol(name, 0, 2**62) for name in "ab"]
    shape = [A, B, Multiply((A, B)), FloorDivide(A, Constant(7)), Modulo(B, Constant(3))]
    old = of(*shape, symbols=symbols)
    new = of(*shape, symbols=[Symbol(name, 0, None) for name in "ab"])
    started = timeit.default_timer()
    assert is_compatible(old, new)
    assert not is_compatible(new, old)
    assert timeit.default_timer() - started < 5


# Contracts that nobody has ------------------------------------------------------------------------


def divided(level: int, divisor: int) -> Expression:
    """Divisions within divisions, whose dividends have more terms at each level."""
    if level == 0:
        return B
    inner = Add((divided(level - 1, divisor), A))
    return FloorDivide(Multiply((inner, Add((A, B, Constant(level))))), Constant(divisor))


def tied(maximum: int) -> Contract:
    """Each of 300 symbols has a relation to the next."""
    symbols = [SymbolReference(index, f"s{index}") for index in range(300)]
    pairs = zip(symbols, [*symbols[1:], symbols[0]], strict=True)
    return contract_of(
        [Symbol(item.name, 1, 1000) for item in symbols],
        {"x": symbols},
        [Comparison("<=", Add(pair), Constant(maximum)) for pair in pairs],
    )


def many(maximum: int) -> Contract:
    symbols = [SymbolReference(index, f"s{index}") for index in range(20_000)]
    return contract_of([Symbol(item.name, 1, maximum) for item in symbols], {"x": symbols})


PAIR = [Symbol("a", 1, 50), Symbol("b", 1, 50)]


@pytest.fixture
def bounded_time() -> Iterator[None]:
    """Ends a test that takes more than a few seconds of a processor, however loaded that is."""

    def end(*_: object) -> None:
        pytest.fail("took more than 30 seconds of a processor")

    previous = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, 30)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, previous)


@pytest.mark.usefixtures("bounded_time")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (of(A, B, divided(12, 3), symbols=PAIR), of(A, B, divided(12, 4), symbols=PAIR)),
        (
            contract_of(PAIR, {"x": [A, B]}, [Comparison(">=", divided(12, 3), Constant(3))]),
            contract_of(PAIR, {"x": [A, B]}, [Comparison(">=", divided(12, 4), Constant(10**6))]),
        ),
        (tied(1500), tied(1499)),
        (many(100), many(101)),
    ],
    ids=["nested divisions", "nested relations", "tied symbols", "many symbols"],
)
def test_the_most_complicated_contracts_are_compared_in_bounded_time(
    old: Contract, new: Contract
) -> None:
    assert not is_compatible(old, new)


@pytest.mark.usefixtures("bounded_time")
def test_work_that_is_not_worth_it_counts_as_broken_and_says_so() -> None:
    differences = compare({"forward": many(100)}, {"forward": many(101)})
    clauses = {clause.subject: clause for clause in differences.methods["forward"]}
    assert clauses["input 'x' dimension 0"].verdict is Verdict.WIDENED
    last = clauses["input 'x' dimension 19999"]
    assert last.verdict is Verdict.NARROWED
    assert "the contracts are too complicated" in last.reason


@pytest.mark.usefixtures("bounded_time")
def test_an_example_of_many_sizes_is_cut_short() -> None:
    differences = compare({"forward": tied(1500)}, {"forward": tied(3)})
    (clause, *_) = [
        clause for clause in differences.methods["forward"] if "was allowed" in clause.reason
    ]
    assert clause.reason.endswith(", …")
    assert len(clause.reason) < 500
