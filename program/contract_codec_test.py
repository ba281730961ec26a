"""Contracts as messages: what is written is read, and what is hostile is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway.program.contract import (
    Contract,
    InputSpec,
    OutputSpec,
    Relation,
    Symbol,
    TensorSpec,
)
from slipway.program.contract_codec import (
    contract_from_proto,
    contract_to_proto,
    scalar_type_from_proto,
)
from slipway.program.errors import ContractViolation, CorruptProgramError
from slipway.program.expressions import (
    Add,
    All,
    AnyOf,
    Comparison,
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
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

A, B = SymbolReference(0, "batch"), SymbolReference(1, "ширина")
LEAF = Tree(Kind.LEAF)

EVERYTHING = Contract(
    method="encode",
    symbols=(Symbol("batch", 0, 2**62), Symbol("ширина", 1, None)),
    inputs=(
        InputSpec("x", TensorSpec(ScalarType.BFLOAT16, (A, Multiply((Constant(8), B))))),
        InputSpec("nested.0", TensorSpec(ScalarType.BOOL, (B,))),
        InputSpec("nested.k", constant=None),
        InputSpec("flag", constant=True),
        InputSpec("count", constant=-(2**63)),
        InputSpec("scale", constant=0.1),
        InputSpec("mode", constant="näher"),
    ),
    input_tree=Tree(
        Kind.TUPLE,
        (
            Tree(Kind.TUPLE, (LEAF, Tree(Kind.DICT, (LEAF, LEAF), (0, "k")))),
            Tree(Kind.DICT, (LEAF,) * 4, ("flag", "count", "scale", "mode")),
        ),
    ),
    parameters=("x", "nested"),
    outputs=(
        OutputSpec("out", TensorSpec(ScalarType.COMPLEX128, (Unknown(), Minimum((A, B))))),
        OutputSpec("size", integer=Maximum((Add((A, Constant(-1))), FloorDivide(A, B)))),
        OutputSpec("nothing"),
    ),
    output_tree=Tree(Kind.LIST, (LEAF, LEAF, LEAF)),
    relations=(
        Relation(
            AnyOf(
                (
                    All((Comparison("!=", B, Constant(0)), Comparison("<", A, B))),
                    Negation(Comparison("==", Modulo(A, B), Constant(0))),
                )
            ),
            "model.py:3",
        ),
        Relation(Comparison(">=", A, B), ""),
        Relation(Comparison("<=", A, B), ""),
        Relation(Comparison(">", A, B), ""),
    ),
    batch_symbol=0,
    contiguous=True,
    notes=("a note", "ещё одна"),
)

SMALL = Contract(
    method="forward",
    symbols=(Symbol("batch", 1, 8),),
    inputs=(InputSpec("x", TensorSpec(ScalarType.FLOAT32, (A,))),),
    input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF,)), Tree(Kind.DICT))),
    parameters=("x",),
    outputs=(OutputSpec("out", TensorSpec(ScalarType.FLOAT32, (A,))),),
    output_tree=LEAF,
    relations=(Relation(Comparison("<=", A, Constant(8))),),
)


def test_everything_that_is_written_is_read_again() -> None:
    message = contract_to_proto(EVERYTHING)
    parsed = pb.Contract.FromString(message.SerializeToString())
    sources = [relation.source for relation in EVERYTHING.relations]
    assert contract_from_proto(parsed, sources) == EVERYTHING


def test_sources_of_another_number_of_relations_are_left_out() -> None:
    contract = contract_from_proto(contract_to_proto(EVERYTHING), ["model.py:1"])
    assert [relation.source for relation in contract.relations] == [""] * 4


@pytest.mark.parametrize("scalar_type", ScalarType)
def test_every_scalar_type_has_its_namesake(scalar_type: ScalarType) -> None:
    assert scalar_type_from_proto(pb.ScalarType.Value(scalar_type.name)) is scalar_type


def test_the_message_knows_no_other_scalar_types() -> None:
    assert set(pb.ScalarType.keys()) == {item.name for item in ScalarType} | {
        "SCALAR_TYPE_UNSPECIFIED"
    }


def _nested(levels: int) -> pb.Expression:
    expression = pb.Expression(symbol=0)
    for _ in range(levels):
        both = [expression, pb.Expression(constant=1)]
        expression = pb.Expression(add=pb.Expression.Operands(operands=both))
    return expression


def _set_size(expression: pb.Expression) -> Callable[[pb.Contract], None]:
    return lambda message: message.inputs[0].tensor.shape[0].CopyFrom(expression)


def _set_result(expression: pb.Expression) -> Callable[[pb.Contract], None]:
    return lambda message: message.outputs[0].tensor.shape[0].CopyFrom(expression)


def _set_keywords(*keys: pb.Constant) -> Callable[[pb.Contract], None]:
    def change(message: pb.Contract) -> None:
        for number, key in enumerate(keys):
            message.inputs.add(name=f"keyword_{number}").constant.none.SetInParent()
            message.input_tree.children[1].children.add(kind=pb.Tree.LEAF)
            message.input_tree.children[1].keys.append(key)

    return change


def _set_condition(condition: pb.Condition) -> Callable[[pb.Contract], None]:
    return lambda message: message.relations[0].condition.CopyFrom(condition)


def _set_fields(kind: pb.Tree.Kind, *names: str) -> Callable[[pb.Contract], None]:
    def change(message: pb.Contract) -> None:
        first = message.outputs[0]
        del message.outputs[:]
        message.output_tree.CopyFrom(pb.Tree(kind=kind, type_name="Result"))
        for number, name in enumerate(names):
            message.outputs.add(name=f"out_{number}").tensor.CopyFrom(first.tensor)
            message.output_tree.children.add(kind=pb.Tree.LEAF)
            message.output_tree.keys.add(string=name)

    return change


ONE = pb.Expression(constant=1)
UNKNOWN = pb.Expression(unknown=pb.Nothing())
LESS = pb.Comparison.LESS
Operands, Pair = pb.Expression.Operands, pb.Expression.Pair


def _hostile() -> dict[str, Callable[[pb.Contract], object]]:
    return {
        "symbol beyond the list": _set_size(pb.Expression(symbol=1)),
        "largest symbol": _set_size(pb.Expression(symbol=2**32 - 1)),
        "size of no kind": _set_size(pb.Expression()),
        "unknown size of an input": _set_size(UNKNOWN),
        "computed from an unknown size": _set_size(
            pb.Expression(add=Operands(operands=[pb.Expression(symbol=0), UNKNOWN]))
        ),
        "output computed from an unknown size": lambda message: (
            message.outputs[0]
            .tensor.shape[0]
            .CopyFrom(pb.Expression(modulo=Pair(left=UNKNOWN, right=ONE)))
        ),
        "no operands": _set_result(pb.Expression(add=Operands())),
        "one operand": _set_result(pb.Expression(maximum=Operands(operands=[ONE]))),
        "half a pair": _set_result(pb.Expression(floor_divide=Pair(left=ONE))),
        "no binder": _set_size(pb.Expression(constant=4)),
        "unbound symbol": lambda message: message.symbols.add(name="other"),
        "condition of no kind": _set_condition(pb.Condition()),
        "comparison without operator": _set_condition(
            pb.Condition(comparison=pb.Comparison(left=ONE, right=ONE))
        ),
        "unknown operator": _set_condition(
            pb.Condition(comparison=pb.Comparison(operator=99, left=ONE, right=ONE))  # type: ignore[arg-type]
        ),
        "comparison with an unknown size": _set_condition(
            pb.Condition(comparison=pb.Comparison(operator=LESS, left=ONE, right=UNKNOWN))
        ),
        "all of nothing": _set_condition(pb.Condition(all=pb.Condition.Conditions())),
        "any of nothing": _set_condition(pb.Condition(any=pb.Condition.Conditions())),
        "negation of nothing": _set_condition(pb.Condition(negation=pb.Condition())),
        "relation without condition": lambda message: message.relations[0].Clear(),
        "minimum above maximum": lambda message: setattr(message.symbols[0], "minimum", 9),
        "negative minimum": lambda message: setattr(message.symbols[0], "minimum", -1),
        "symbol without name": lambda message: setattr(message.symbols[0], "name", ""),
        "two symbols of one name": lambda message: message.symbols.add(name="batch"),
        "input without name": lambda message: setattr(message.inputs[0], "name", ""),
        "input of no kind": lambda message: message.inputs[0].ClearField("tensor"),
        "output of no kind": lambda message: message.outputs[0].ClearField("tensor"),
        "constant of no kind": lambda message: message.inputs[0].constant.SetInParent(),
        "unspecified dtype": lambda message: message.inputs[0].tensor.ClearField("dtype"),
        "unknown dtype": lambda message: setattr(message.inputs[0].tensor, "dtype", 4711),
        "two inputs of one name": lambda message: message.inputs.add(
            name="x"
        ).constant.none.SetInParent(),
        "two outputs of one name": lambda message: (
            _set_fields(pb.Tree.RECORD, "first", "second")(message),
            setattr(message.outputs[1], "name", "out_0"),
        ),
        "more inputs than leaves": lambda message: message.inputs.add(
            name="y"
        ).constant.none.SetInParent(),
        "no inputs": lambda message: message.ClearField("inputs"),
        "no outputs": lambda message: message.ClearField("outputs"),
        "no input tree": lambda message: message.ClearField("input_tree"),
        "no output tree": lambda message: message.ClearField("output_tree"),
        "tree of unknown kind": lambda message: setattr(message.output_tree, "kind", 99),
        "leaf with children": lambda message: setattr(
            message.output_tree.children.add(), "kind", pb.Tree.LEAF
        ),
        "leaf with keys": lambda message: setattr(message.output_tree.keys.add(), "string", "k"),
        "dict without keys": lambda message: setattr(
            message.input_tree.children[0], "kind", pb.Tree.DICT
        ),
        "key of a kind of its own": lambda message: setattr(
            message.input_tree.children[1].keys.add(), "floating", 0.5
        ),
        "key that is a boolean": _set_keywords(pb.Constant(boolean=True)),
        "two keys of one name": _set_keywords(pb.Constant(string="k"), pb.Constant(string="k")),
        "arguments that are a list": lambda message: setattr(
            message.input_tree.children[0], "kind", pb.Tree.LIST
        ),
        "no parameters": lambda message: message.ClearField("parameters"),
        "named tuple with two names for one field": _set_fields(
            pb.Tree.NAMED_TUPLE, "fi", "\ufb01"
        ),
        "record with two names for one field": _set_fields(pb.Tree.RECORD, "fi", "\ufb01"),
        "record with a field that cannot be set": _set_fields(pb.Tree.RECORD, "__debug__"),
        "record with a field that is its class": _set_fields(pb.Tree.RECORD, "__class__"),
        "record with more fields than anybody has": _set_fields(
            pb.Tree.RECORD, *(f"field_{number}" for number in range(1001))
        ),
        "batch symbol beyond the list": lambda message: setattr(message, "batch_symbol", 1),
    }


@pytest.mark.parametrize("name", _hostile())
def test_a_hostile_message_is_corrupt(name: str) -> None:
    message = contract_to_proto(SMALL)
    contract_from_proto(message)  # it is sound before it is changed
    _hostile()[name](message)
    with pytest.raises(CorruptProgramError) as caught:
        contract_from_proto(message)
    assert len(str(caught.value)) > 20


def test_keys_may_be_text_and_numbers() -> None:
    message = contract_to_proto(SMALL)
    _set_keywords(pb.Constant(string="k"), pb.Constant(integer=1))(message)
    assert contract_from_proto(message).input_tree.children[1].keys == ("k", 1)


def test_nesting_is_read_as_deep_as_protobuf_itself_goes() -> None:
    message = contract_to_proto(SMALL)
    message.outputs[0].tensor.shape[0].CopyFrom(_nested(40))
    contract = contract_from_proto(pb.Contract.FromString(message.SerializeToString()))
    assert contract.output_shapes((2,)) == {"out": (42,)}
    with pytest.raises(DecodeError):
        _nested(60)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_message_with_any_bytes_changed_is_corrupt_or_a_contract(data: st.DataObject) -> None:
    content = bytearray(
        contract_to_proto(data.draw(st.sampled_from([SMALL, EVERYTHING]))).SerializeToString()
    )
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = pb.Contract.FromString(bytes(content))
    except DecodeError:
        return
    try:
        contract = contract_from_proto(message)
    except CorruptProgramError:
        return
    assert contract_to_proto(contract) is not None
    with pytest.raises(ContractViolation):
        contract.check({"no such input": (ScalarType.FLOAT32, [1])})


def test_expressions_of_every_kind_survive() -> None:
    kinds: list[Expression] = [
        Add((A, Constant(1))),
        Multiply((A, A, A)),
        Minimum((A, Constant(-(2**63)))),
        Maximum((A, Constant(2**63 - 1))),
        FloorDivide(A, Constant(3)),
        Modulo(A, Constant(3)),
    ]
    for kind in kinds:
        outputs = (OutputSpec("out", integer=kind),)
        message = contract_to_proto(replace(SMALL, outputs=outputs))
        assert contract_from_proto(message).outputs == outputs
