"""Graphs that map over a dimension, and what they leave of it in the thread that runs them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from slipway.program import Program
from slipway.program.contract import Contract, InputSpec, OutputSpec, TensorSpec
from slipway.program.errors import CorruptProgramError
from slipway.program.expressions import Constant
from slipway.program.operators import operator_schema
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

LEAF = Tree(Kind.LEAF)
MATRIX = TensorSpec(ScalarType.FLOAT32, (Constant(3), Constant(4)))
CONTRACT = Contract(
    method="forward",
    symbols=(),
    inputs=(InputSpec("x", MATRIX),),
    input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF,)), Tree(Kind.DICT))),
    parameters=("x",),
    outputs=(OutputSpec("y", MATRIX),),
    output_tree=LEAF,
)

ENTER, LEAVE = "vmap::_vmap_increment_nesting", "vmap::_vmap_decrement_nesting"
ADD, REMOVE = "vmap::_add_batch_dim", "vmap::_remove_batch_dim"
NEGATE, FAIL = "aten::neg.default", "aten::select.int"
RUN = "control::wrap_with_set_grad_enabled"
OPERATORS = [ENTER, LEAVE, ADD, REMOVE, NEGATE, FAIL, RUN]


def nesting() -> int:
    depth: int = torch._C._functorch.get_dynamic_layer_stack_depth()
    return depth


def integers(*numbers: int) -> list[pb.Argument]:
    return [pb.Argument(integer=number) for number in numbers]


def arguments(step: str, tensor: pb.Argument) -> list[pb.Argument]:
    match step:
        case "vmap::_vmap_increment_nesting":
            return [*integers(3), pb.Argument(string="error")]
        case "vmap::_vmap_decrement_nesting":
            return []
        case "vmap::_add_batch_dim":
            return [tensor, *integers(0, 1)]
        case "vmap::_remove_batch_dim":
            return [tensor, *integers(1, 3, 0)]
        case "aten::select.int":
            return [tensor, *integers(0, 99)]
        case "control::wrap_with_set_grad_enabled":
            return [pb.Argument(boolean=False), pb.Argument(subgraph=0), tensor]
        case _:
            return [tensor]


def graph(steps: Sequence[str], *subgraphs: pb.Graph, operand: bool = False) -> pb.Graph:
    """A graph that takes steps one after the other, and then gives the last tensor."""
    graph = pb.Graph(
        inputs=[pb.GraphInput(operand=0) if operand else pb.GraphInput(input=0)],
        subgraphs=subgraphs,
    )
    tensor = pb.Argument(value=0)
    for number, step in enumerate(steps):
        graph.nodes.add(operator=OPERATORS.index(step), arguments=arguments(step, tensor))
        if step not in (ENTER, LEAVE):
            tensor = pb.Argument(value=number + 1)
    graph.outputs.append(tensor)
    graph.single_output = operand
    return graph


def program(method: pb.Graph) -> Program:
    operators = [pb.Operator(name=name, schema=operator_schema(name)) for name in OPERATORS]
    message = pb.ProgramGraph(operators=operators, methods=[method])
    return Program({"forward": CONTRACT}, message, {}, device=torch.device("cpu"))


def test_a_dimension_that_is_left_again() -> None:
    mapped = program(graph([ENTER, ADD, NEGATE, REMOVE, LEAVE]))
    assert torch.equal(mapped(torch.ones(3, 4)), -torch.ones(3, 4))
    assert nesting() == 0


@pytest.mark.parametrize(
    "steps", [[ENTER], [ENTER, ENTER, LEAVE], [LEAVE], [LEAVE, ENTER], [ENTER, LEAVE, LEAVE, ENTER]]
)
@pytest.mark.parametrize("in_subgraph", [False, True])
def test_a_graph_that_would_leave_the_thread_changed_is_corrupt(
    steps: list[str], in_subgraph: bool
) -> None:
    method = graph([*steps, NEGATE], operand=in_subgraph)
    with pytest.raises(CorruptProgramError, match="dimensions that it maps over"):
        program(graph([RUN], method) if in_subgraph else method)


@pytest.mark.parametrize("in_subgraph", [False, True])
def test_a_call_that_fails_in_a_dimension_leaves_it(in_subgraph: bool) -> None:
    method = graph([ENTER, ADD, FAIL, REMOVE, LEAVE], operand=in_subgraph)
    failing = program(graph([RUN], method) if in_subgraph else method)
    for _ in range(2):
        with pytest.raises(IndexError):
            failing(torch.ones(3, 4))
        assert nesting() == 0
    assert torch.equal(torch.ones(3, 4) + 1, torch.full((3, 4), 2.0))


def test_only_subgraphs_of_its_own_graph_are_run_and_by_nothing_else() -> None:
    inner = graph([NEGATE], operand=True)
    assert torch.equal(program(graph([RUN], inner))(torch.ones(3, 4)), -torch.ones(3, 4))
    outer = graph([RUN], operand=True)  # its own subgraphs are none
    for method in (graph([RUN]), graph([RUN], outer)):
        with pytest.raises(CorruptProgramError, match="none of its graph's subgraphs"):
            program(method)
    method = graph([NEGATE], inner)
    method.nodes[0].arguments[0].subgraph = 0
    with pytest.raises(CorruptProgramError, match="uses a subgraph as a value"):
        program(method)
    for count in (0, 2):
        del inner.outputs[:]
        inner.outputs.extend([pb.Argument(value=0)] * count)
        with pytest.raises(CorruptProgramError, match=f"with one output has {count}"):
            program(graph([RUN], inner))


def test_a_call_within_vmap_leaves_that_as_it_was() -> None:
    failing = program(graph([ENTER, ADD, FAIL, REMOVE, LEAVE]))

    def call(x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(RuntimeError):
            failing(x)
        assert nesting() == 1
        return x + 1

    assert torch.equal(torch.vmap(call)(torch.ones(2, 3, 4)), torch.full((2, 3, 4), 2.0))
    assert nesting() == 0
