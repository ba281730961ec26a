"""How calls can be joined: kept in programs, and refused where it does not go with the contract."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway.program import Batching, BatchingEvidence, Contract, CorruptProgramError, Padding
from slipway.program.batching import BatchingError, PaddingNumber, padding_problem
from slipway.program.clauses import Verdict
from slipway.program.compatibility import compare
from slipway.program.contract import InputSpec, OutputSpec, Relation, Symbol, TensorSpec
from slipway.program.contract_codec import contract_from_proto, contract_to_proto
from slipway.program.contract_files import ContractFile
from slipway.program.description import as_json, as_text
from slipway.program.expressions import (
    Add,
    Comparison,
    Constant,
    Expression,
    SymbolReference,
    Unknown,
)
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

ROWS, LENGTH = SymbolReference(0, "rows"), SymbolReference(1, "length")
LEAF = Tree(Kind.LEAF)
EVIDENCE = BatchingEvidence(
    batch_sizes=(2, 3, 16), settings=2, comparisons=42, perturbations=5, seed=0
)


def contract_of(
    inputs: dict[str, TensorSpec],
    output: TensorSpec,
    batching: Batching | None = None,
    symbols: tuple[Symbol, ...] = (Symbol("rows", 1, 16), Symbol("length", 1, None)),
) -> Contract:
    return Contract(
        method="forward",
        symbols=symbols,
        inputs=tuple(InputSpec(name, tensor=spec) for name, spec in inputs.items()),
        input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF,) * len(inputs)), Tree(Kind.DICT))),
        parameters=tuple(inputs),
        outputs=(OutputSpec("out", tensor=output),),
        output_tree=LEAF,
        batching=batching,
    )


def tensor(*shape: Expression, dtype: ScalarType = ScalarType.FLOAT32) -> TensorSpec:
    return TensorSpec(dtype, shape)


BATCHING = Batching(
    "rows",
    {"tokens": 0, "mask": 1},
    (0,),
    atol=1e-5,
    rtol=1e-4,
    evidence=EVIDENCE,
    paddings=(Padding("length", {"tokens": -1, "mask": False}),),
)
CONTRACT = contract_of(
    {
        "tokens": tensor(ROWS, LENGTH, dtype=ScalarType.INT64),
        "mask": tensor(LENGTH, ROWS, dtype=ScalarType.BOOL),
    },
    tensor(ROWS, Constant(64)),
    BATCHING,
)


def test_it_survives_as_a_message() -> None:
    message = pb.Contract.FromString(contract_to_proto(CONTRACT).SerializeToString())
    assert contract_from_proto(message) == CONTRACT
    assert contract_from_proto(message).batching == BATCHING


def test_a_program_of_before_has_none() -> None:
    message = contract_to_proto(CONTRACT)
    message.ClearField("batching")
    assert contract_from_proto(message).batching is None


_NUMBERS = st.floats(0, allow_nan=False, allow_infinity=False)
_COUNTS = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(
    order=st.permutations(range(4)),
    names=st.lists(st.text(min_size=1), min_size=4, max_size=4, unique=True),
    tolerances=st.tuples(_NUMBERS, _NUMBERS),
    sizes=st.lists(st.integers(2, 2**63 - 1)),
    counts=st.tuples(_COUNTS, _COUNTS, _COUNTS, _COUNTS),
    value=st.integers(-(2**63), 2**63 - 1),
)
def test_any_of_it_survives(
    order: list[int],
    names: list[str],
    tolerances: tuple[float, float],
    sizes: list[int],
    counts: tuple[int, int, int, int],
    value: int,
) -> None:
    symbols = tuple(Symbol(name, 1, None) for name in names)
    shape = tuple(SymbolReference(index, names[index]) for index in order)
    spec = tensor(*shape, dtype=ScalarType.INT64)
    batching = Batching(
        names[order[2]],
        {"x": 2},
        (2,),
        *tolerances,
        BatchingEvidence(tuple(sizes), *counts),
        (Padding(names[order[0]], {"x": value}), Padding(names[order[3]], {"x": 0})),
    )
    contract = contract_of({"x": spec}, spec, batching, symbols)
    message = pb.Contract.FromString(contract_to_proto(contract).SerializeToString())
    assert contract_from_proto(message) == contract


WRONG: dict[str, Callable[[Batching], Batching]] = {
    "is not in the contract": lambda it: replace(it, symbol="columns"),
    r"output 'out' is float32\[rows, 64\]": lambda it: replace(it, symbol="length", paddings=()),
    r"dimensions of inputs are \[1, 1\]; 'rows' is \[0, 1\]": lambda it: replace(
        it, inputs={"tokens": 1, "mask": 1}
    ),
    "dimensions of inputs": lambda it: replace(it, inputs={"mask": 0, "tokens": 1}),
    "dimensions of outputs": lambda it: replace(it, outputs=(0, 0)),
    "tolerance": lambda it: replace(it, rtol=float("nan")),
    "a tolerance": lambda it: replace(it, atol=-1.0),
    "two paddings": lambda it: replace(it, paddings=it.paddings * 2),
    "'rows' is not another symbol": lambda it: replace(
        it, paddings=(Padding("rows", {"tokens": 0, "mask": False}),)
    ),
    r"the inputs that have it are \['tokens', 'mask'\]": lambda it: replace(
        it, paddings=(Padding("length", {"tokens": 0}),)
    ),
    r"values are given for \['tokens', 'mask', 'x'\]": lambda it: replace(
        it, paddings=(Padding("length", {"tokens": 0, "mask": False, "x": 0.0}),)
    ),
    "'mask' is bool, which does not hold 0": lambda it: replace(
        it, paddings=(Padding("length", {"tokens": 0, "mask": 0}),)
    ),
    "'tokens' is int64, which does not hold 9223372036854775808": lambda it: replace(
        it, paddings=(Padding("length", {"tokens": 2**63, "mask": False}),)
    ),
}


@pytest.mark.parametrize("problem", WRONG)
def test_what_does_not_go_with_the_contract_is_refused(problem: str) -> None:
    with pytest.raises(BatchingError, match=problem):
        replace(CONTRACT, batching=WRONG[problem](BATCHING))


@pytest.mark.parametrize(
    ("problem", "changed"),
    [
        (
            "one of its dimensions must be exactly rows",
            {"output": tensor(Add((ROWS, Constant(1))))},
        ),
        ("no other may depend on it", {"output": tensor(ROWS, ROWS)}),
        ("one of its dimensions", {"output": tensor(Constant(64))}),
        ("one of its dimensions", {"output": tensor(ROWS, Unknown())}),
        ("one of its dimensions", {"inputs": {"x": tensor(ROWS), "y": tensor(LENGTH)}}),
        ("a call of one row must be legal", {"symbols": (Symbol("rows", 2, 16),)}),
        ("a batch has two rows at least", {"symbols": (Symbol("rows", 1, 1),)}),
    ],
)
def test_shapes_that_cannot_be_joined(problem: str, changed: dict[str, object]) -> None:
    arguments = {"inputs": {"x": tensor(ROWS)}, "output": tensor(ROWS)} | changed
    if "symbols" not in changed and "inputs" not in changed:
        arguments["symbols"] = (Symbol("rows", 1, 16),)
    inputs = arguments["inputs"]
    assert isinstance(inputs, dict)
    batching = Batching("rows", dict.fromkeys(inputs, 0), (0,), 0.0, 0.0, EVIDENCE)
    with pytest.raises(BatchingError, match=problem):
        contract_of(batching=batching, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "legal", "illegal"),
    [
        (ScalarType.BOOL, [False, True], [0, 1.0]),
        (ScalarType.UINT8, [0, 255], [-1, 256, True, 1.0]),
        (ScalarType.INT8, [-128, 127], [-129, 128, False, 1.0]),
        (ScalarType.FLOAT32, [-1.5], [1, True, math.inf, math.nan]),
    ],
)
def test_a_padding_is_a_number_that_the_input_holds(
    dtype: ScalarType, legal: list[PaddingNumber], illegal: list[PaddingNumber]
) -> None:
    contract = contract_of({"x": tensor(ROWS, LENGTH, dtype=dtype)}, tensor(ROWS))
    for value in legal:
        assert padding_problem(contract, 1, {"x": value}) is None
    for value in illegal:
        problem = padding_problem(contract, 1, {"x": value})
        assert problem == f"input 'x' is {dtype.value}, which does not hold {value!r}"


def test_a_size_that_is_derived_from_a_symbol_cannot_be_padded_along_it() -> None:
    derived = tensor(ROWS, Add((LENGTH, Constant(1))))
    with pytest.raises(
        BatchingError, match=r"'out', float32\[rows, length \+ 1\], is derived from"
    ):
        replace(CONTRACT, outputs=(OutputSpec("out", tensor=derived),))


def test_calls_that_give_no_tensor_cannot_be_joined() -> None:
    nothing = replace(BATCHING, outputs=())
    with pytest.raises(BatchingError, match="the method gives no tensor"):
        replace(CONTRACT, outputs=(OutputSpec("out", constant=1),), batching=nothing)


@pytest.mark.parametrize("size", [ROWS, LENGTH])
def test_a_number_of_the_whole_call_is_of_no_row(size: Expression) -> None:
    outputs = (*CONTRACT.outputs, OutputSpec("size", integer=size))
    with pytest.raises(BatchingError, match=f"output 'size' is the integer {size}"):
        replace(CONTRACT, outputs=outputs)


def test_a_relation_on_the_rows_is_refused() -> None:
    even = (Relation(Comparison("==", ROWS, Constant(4))),)
    with pytest.raises(BatchingError, match="the relation rows == 4 depends on it"):
        replace(CONTRACT, relations=even)
    tied = (Relation(Comparison("<=", LENGTH, Constant(4))),)
    with pytest.raises(BatchingError, match="the relation length <= 4 depends on it"):
        replace(CONTRACT, relations=tied)
    assert replace(CONTRACT, relations=tied, batching=replace(BATCHING, paddings=()))


def _set(path: str, value: object) -> Callable[[pb.Batching], None]:
    def change(message: pb.Batching) -> None:
        *parents, last = path.split(".")
        item: object = message
        for name in parents:
            item = item[int(name)] if name.isdecimal() else getattr(item, name)  # type: ignore[index]
        setattr(item, last, value)

    return change


HOSTILE: dict[str, Callable[[pb.Batching], None]] = {
    "symbol beyond the list": _set("symbol", 2),
    "another symbol": _set("symbol", 1),
    "missing dimension": lambda message: message.input_dimensions.__delitem__(0),
    "dimension beyond the rank": lambda message: message.input_dimensions.__setitem__(0, 2),
    "dimension too many": lambda message: message.output_dimensions.append(0),
    "tolerance without end": _set("absolute_tolerance", float("inf")),
    "padding beyond the list": _set("paddings.0.symbol", 9),
    "padding of the rows": _set("paddings.0.symbol", 0),
    "padding of no input": _set("paddings.0.values.0.input", "nothing"),
    "padding twice": _set("paddings.0.values.0.input", "mask"),
    "padding twice, of all inputs": lambda message: message.paddings[0].values.append(
        message.paddings[0].values[0]
    ),
    "padding with text": _set("paddings.0.values.0.value.string", "0"),
    "padding with nothing": lambda message: message.paddings[0].values[0].value.Clear(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_message_is_corrupt(name: str) -> None:
    message = contract_to_proto(CONTRACT)
    HOSTILE[name](message.batching)
    with pytest.raises(CorruptProgramError):
        contract_from_proto(message)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_bytes_changed_are_corrupt_or_sound(data: st.DataObject) -> None:
    content = bytearray(contract_to_proto(CONTRACT).batching.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    message = contract_to_proto(CONTRACT)
    try:
        message.batching.ParseFromString(bytes(content))
        contract = contract_from_proto(message)
    except Exception as error:
        assert type(error).__name__ in ("DecodeError", "CorruptProgramError")
        return
    assert contract.batching is not None
    assert contract_from_proto(contract_to_proto(contract)) == contract


def test_it_is_described() -> None:
    file = ContractFile({"forward": CONTRACT})
    text = as_text(file, review=True)
    assert (
        "  batching: over rows, rows to within 1e-05 + 0.0001 * their largest magnitude; "
        "length may be padded: tokens with -1, mask with False\n"
        "  tried with batches of 2, 3, 16 rows, 2 settings of other symbols: "
        "42 rows compared, 5 perturbed\n"
    ) in text
    assert "rows, 1 setting of other" in str(replace(EVIDENCE, settings=1))
    batching = as_json(file, review=True)["methods"]["forward"]["batching"]
    assert batching["inputs"] == {"tokens": 0, "mask": 1}
    assert batching["evidence"]["batch_sizes"] == (2, 3, 16)


def test_losing_it_breaks_nobody_and_is_said() -> None:
    versions = {
        "with": CONTRACT,
        "without": replace(CONTRACT, batching=None),
        "unpadded": replace(CONTRACT, batching=replace(BATCHING, paddings=())),
    }
    verdicts = {}
    for (before, old), (after, new) in itertools.product(versions.items(), repeat=2):
        differences = compare({"forward": old}, {"forward": new})
        assert not list(differences.breaking(python=True))
        for clause in differences.methods["forward"]:
            if clause.subject == "batching":
                verdicts[before, after] = clause.verdict
    assert ("without", "without") not in verdicts
    assert verdicts["with", "with"] is Verdict.UNCHANGED
    assert verdicts["without", "with"] is Verdict.WIDENED
    assert verdicts["with", "without"] is verdicts["with", "unpadded"] is Verdict.NOTED
