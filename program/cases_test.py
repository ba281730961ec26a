"""Cases whose calls or tensors are not such as programs have."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from slipway.program import Program, verify
from slipway.program.cases import AnsweredCase, Case
from slipway.program.contract import Contract, InputSpec, OutputSpec, TensorSpec
from slipway.program.errors import CaseFailedError
from slipway.program.expressions import Constant
from slipway.program.operators import operator_schema
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

LEAF = Tree(Kind.LEAF)
PAIR = TensorSpec(ScalarType.FLOAT32, (Constant(2),))
CONTRACT = Contract(
    method="forward",
    symbols=(),
    inputs=(InputSpec("x", PAIR),),
    input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF,)), Tree(Kind.DICT))),
    parameters=("x",),
    outputs=(OutputSpec("y", PAIR),),
    output_tree=LEAF,
)
INPUT, ZERO = pb.Argument(value=0), pb.Argument(integer=0)


def program(cases: Sequence[Case], *calls: tuple[str, Sequence[pb.Argument]]) -> Program:
    """A program that makes calls, and gives the last one's result."""
    message = pb.ProgramGraph(
        operators=[pb.Operator(name=name, schema=operator_schema(name)) for name, _ in calls]
    )
    graph = message.methods.add(inputs=[pb.GraphInput(input=0)])
    for number, (_, arguments) in enumerate(calls):
        graph.nodes.add(operator=number, arguments=arguments)
    graph.outputs.add(value=len(calls))
    return Program(
        {"forward": CONTRACT}, message, {}, device=torch.device("cpu"), cases=lambda: cases
    )


def case(x: torch.Tensor, y: torch.Tensor) -> AnsweredCase:
    return AnsweredCase("forward", {"x": x}, {"y": y})


SOUND = case(torch.ones(2), -torch.ones(2))
NEGATE = "aten::neg.default", [INPUT]


def test_a_case_that_holds() -> None:
    assert verify(program([SOUND], NEGATE))[0].absolute_error == 0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("python::floordiv", [pb.Argument(integer=1), ZERO], "ZeroDivisionError"),
        ("python::sym_float", [pb.Argument(string="x")], "ValueError|TypeError"),
        ("python::pow", [pb.Argument(floating=1e300), pb.Argument(integer=9)], "OverflowError"),
        ("python::add", [ZERO, ZERO], "fails"),
        ("aten::sym_size.int", [INPUT, ZERO], "fails"),
        ("aten::to_sparse.default", [INPUT], "fails"),
    ],
)
def test_a_case_whose_call_fails_in_any_way(
    name: str, arguments: Sequence[pb.Argument], message: str
) -> None:
    with pytest.raises(CaseFailedError, match=message):
        verify(program([SOUND], (name, arguments)))


@pytest.mark.parametrize("place", ["x", "y"])
def test_a_case_with_tensors_of_a_dtype_that_no_program_has(place: str) -> None:
    odd = torch.zeros(2, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    given = {"x": torch.ones(2), "y": -torch.ones(2)} | {place: odd}
    with pytest.raises(CaseFailedError):
        verify(program([case(**given)], NEGATE))
