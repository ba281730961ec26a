"""What running a graph may change, where the graph hides it in what it calls."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from slipway.program import Program
from slipway.program.contract import Contract, InputSpec, OutputSpec, TensorSpec
from slipway.program.errors import CorruptProgramError, OperatorMismatchError
from slipway.program.expressions import Constant
from slipway.program.operators import operator_schema
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

PAIR = TensorSpec(ScalarType.FLOAT32, (Constant(2),))
LEAF = Tree(Kind.LEAF)

CONTRACT = Contract(
    method="forward",
    symbols=(),
    inputs=(InputSpec("x", PAIR),),
    input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF,)), Tree(Kind.DICT))),
    parameters=("x",),
    outputs=(OutputSpec("y", PAIR),),
    output_tree=LEAF,
)

TRUE = pb.Argument(boolean=True)
NONE = pb.Argument(none=pb.Nothing())

Call = tuple[str, list[pb.Argument]]
"""A node: the name of its operator, and its arguments."""


def value(number: int) -> pb.Argument:
    return pb.Argument(value=number)


def subgraph(number: int) -> pb.Argument:
    return pb.Argument(subgraph=number)


def several(*items: pb.Argument) -> pb.Argument:
    return pb.Argument(list=pb.Argument.Arguments(arguments=items))


def graph(
    inputs: Sequence[pb.GraphInput],
    calls: Sequence[Call],
    subgraphs: Sequence[pb.Graph] = (),
    output: pb.Argument | None = None,
    *,
    single: bool = False,
) -> pb.Graph:
    """A graph of calls; it gives the last one's result unless `output` says otherwise."""
    last = value(len(inputs) + len(calls) - 1)
    return pb.Graph(
        inputs=inputs,
        nodes=[
            pb.Node(operator=OPERATORS.index(name), arguments=arguments)
            for name, arguments in calls
        ],
        subgraphs=subgraphs,
        outputs=[last if output is None else output],
        single_output=single,
    )


NORMALISATIONS = [
    "aten::_batch_norm_impl_index.default",
    "aten::batch_norm.default",
    "aten::cudnn_batch_norm.default",
    "aten::instance_norm.default",
    "aten::miopen_batch_norm.default",
    "aten::native_batch_norm.default",
]
OPERATORS = [
    *NORMALISATIONS,
    "aten::_foreach_add_.Scalar",
    "aten::_unsafe_view.default",
    "aten::add.Tensor",
    "aten::add_.Tensor",
    "aten::batch_norm_update_stats.default",
    "aten::clone.default",
    "aten::detach_.default",
    "aten::lift.default",
    "aten::softmax.int",
    "control::associative_scan",
    "control::cond",
    "control::map_impl",
    "control::scan",
    "control::while_loop",
    "control::wrap_with_autocast",
    "control::wrap_with_set_grad_enabled",
    "python::getitem",
    "python::sym_ite",
]
OPERAND = pb.GraphInput(operand=0)
# What a method's graph takes: a weight, and the call's tensor.
INPUTS = [pb.GraphInput(weight=0), pb.GraphInput(input=0)]


def program(method: pb.Graph) -> Program:
    operators = [pb.Operator(name=name, schema=operator_schema(name)) for name in OPERATORS]
    return Program(
        {"forward": CONTRACT},
        pb.ProgramGraph(operators=operators, methods=[method]),
        {"weight": torch.zeros(2)},
        device=torch.device("cpu"),
    )


def writing(*, single: bool = False, operands: int = 1) -> pb.Graph:
    """A subgraph that adds to its first operand."""
    inputs = [pb.GraphInput(operand=place) for place in range(operands)]
    return graph(inputs, [("aten::add_.Tensor", [value(0), value(0)])], single=single)


WEIGHT = value(0)
CALLS: dict[str, list[pb.Argument]] = {
    "control::cond": [TRUE, subgraph(0), subgraph(0), several(WEIGHT)],
    "control::while_loop": [subgraph(0), subgraph(0), several(WEIGHT), several()],
    "control::map_impl": [subgraph(0), several(WEIGHT), several()],
    "control::scan": [subgraph(0), several(WEIGHT), several(WEIGHT), several()],
    "control::associative_scan": [subgraph(0), several(WEIGHT), several()],
    "control::wrap_with_autocast": [
        pb.Argument(string="cpu"),
        NONE,
        TRUE,
        NONE,
        subgraph(0),
        WEIGHT,
    ],
    "control::wrap_with_set_grad_enabled": [TRUE, subgraph(0), WEIGHT],
}


@pytest.mark.parametrize("operator", CALLS)
def test_a_weight_that_a_subgraph_writes_into_is_state(operator: str) -> None:
    calls: list[Call] = [(operator, CALLS[operator]), ("aten::clone.default", [value(1)])]
    assert set(program(graph(INPUTS, calls, [writing()])).state) == {"weight"}


def test_what_a_branch_writes_into_is_put_back() -> None:
    calls: list[Call] = [
        ("control::cond", [TRUE, subgraph(0), subgraph(0), several(WEIGHT)]),
        ("aten::add.Tensor", [WEIGHT, value(1)]),
    ]
    branch = graph([OPERAND], [("aten::add_.Tensor", [value(0), pb.Argument(integer=1)])])
    counting = program(graph(INPUTS, calls, [branch]))
    assert [counting(torch.zeros(2))[0].item() for _ in range(2)] == [1, 2]
    assert counting.weights["weight"].tolist() == [0, 0]
    counting.reset()
    assert counting(torch.zeros(2))[0].item() == 1


def test_a_view_of_a_weight_can_be_written_into_two_subgraphs_deep() -> None:
    inner = writing()
    outer = graph(
        [OPERAND],
        [
            ("control::wrap_with_set_grad_enabled", [TRUE, subgraph(0), value(0)]),
            ("python::getitem", [value(1), pb.Argument(integer=0)]),
        ],
        [inner],
    )
    calls: list[Call] = [
        ("python::getitem", [WEIGHT, pb.Argument(integer=0)]),
        ("control::cond", [TRUE, subgraph(0), subgraph(0), several(value(2))]),
        ("aten::clone.default", [value(1)]),
    ]
    assert set(program(graph(INPUTS, calls, [outer])).state) == {"weight"}


def test_a_subgraph_that_writes_only_into_what_it_made_changes_no_weight() -> None:
    branch = graph(
        [OPERAND],
        [
            ("aten::clone.default", [value(0)]),
            ("aten::add_.Tensor", [value(1), value(1)]),
        ],
    )
    calls: list[Call] = [
        ("control::cond", [TRUE, subgraph(0), subgraph(0), several(WEIGHT)]),
        ("python::getitem", [value(2), pb.Argument(integer=0)]),
    ]
    assert not program(graph(INPUTS, calls, [branch])).state


def test_subgraphs_that_are_used_over_and_over_are_looked_at_once() -> None:
    nested = writing()
    for _ in range(30):
        nested = graph(
            [OPERAND], [("control::cond", [TRUE, subgraph(0), subgraph(0), value(0)])] * 3, [nested]
        )
    calls: list[Call] = [
        ("control::cond", [TRUE, subgraph(0), subgraph(0), several(WEIGHT)]),
        ("aten::clone.default", [value(1)]),
    ]
    assert set(program(graph(INPUTS, calls, [nested])).state) == {"weight"}


@pytest.mark.parametrize(
    "call",
    [
        ("python::getitem", [several(subgraph(0)), pb.Argument(integer=0)]),
        ("python::sym_ite", [TRUE, subgraph(0), subgraph(0)]),
        ("control::cond", [TRUE, subgraph(0), subgraph(0), several(subgraph(0), WEIGHT)]),
        ("control::wrap_with_set_grad_enabled", [TRUE, subgraph(0), subgraph(0)]),
    ],
)
def test_a_subgraph_can_be_nothing_but_what_an_operator_runs(call: Call) -> None:
    with pytest.raises(CorruptProgramError, match="subgraph"):
        program(graph(INPUTS, [call, ("aten::clone.default", [value(1)])], [writing()]))


def test_a_subgraph_cannot_be_given_as_a_result() -> None:
    with pytest.raises(CorruptProgramError, match="subgraph"):
        program(graph(INPUTS, [], [writing()], output=subgraph(0)))


def test_an_operator_can_run_nothing_but_a_subgraph() -> None:
    calls: list[Call] = [
        ("control::cond", [TRUE, value(0), subgraph(0), several(WEIGHT)]),
        ("aten::clone.default", [value(1)]),
    ]
    with pytest.raises(CorruptProgramError, match="subgraph"):
        program(graph(INPUTS, calls, [writing()]))


# Operators that write without saying so -----------------------------------------------------------


def test_statistics_are_state_wherever_the_operator_is_given_them() -> None:
    arguments = [value(1), WEIGHT, WEIGHT, pb.Argument(floating=0.5)]
    calls: list[Call] = [
        ("aten::batch_norm_update_stats.default", arguments),
        ("aten::clone.default", [value(1)]),
    ]
    assert set(program(graph(INPUTS, calls)).state) == {"weight"}


def test_a_call_that_leaves_out_the_statistics_is_no_other_error() -> None:
    calls: list[Call] = [
        ("aten::batch_norm.default", [value(1)]),
        ("aten::clone.default", [value(1)]),
    ]
    assert not program(graph(INPUTS, calls)).state


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("operator", NORMALISATIONS)
def test_statistics_are_state_where_they_are_written(operator: str, training: bool) -> None:
    method = graph(INPUTS, [(operator, []), ("aten::clone.default", [value(1)])])
    flag = pb.Argument(boolean=training)
    name, overload = operator.removeprefix("aten::").split(".")
    for parameter in getattr(getattr(torch.ops.aten, name), overload)._schema.arguments:
        argument = {
            "input": value(1),
            "weight": value(1),
            "bias": value(1),
            "running_mean": WEIGHT,
            "running_var": WEIGHT,
            "training": flag,
            "use_input_stats": flag,
            "cudnn_enabled": TRUE,
        }.get(parameter.name, pb.Argument(floating=0.5))
        method.nodes[0].keyword_arguments.add(name=parameter.name, value=argument)
    assert set(program(method).state) == ({"weight"} if training else set())


@pytest.mark.parametrize(
    "call",
    [
        ("aten::_unsafe_view.default", [WEIGHT, several(pb.Argument(integer=2))]),
        ("aten::lift.default", [WEIGHT]),
    ],
)
def test_a_view_that_no_schema_tells_of_is_one(call: Call) -> None:
    calls: list[Call] = [call, ("aten::add_.Tensor", [value(2), value(1)])]
    assert set(program(graph(INPUTS, calls)).state) == {"weight"}


def test_what_computes_gives_no_view() -> None:
    calls: list[Call] = [
        ("aten::softmax.int", [WEIGHT, pb.Argument(integer=0)]),
        ("aten::add_.Tensor", [value(2), value(1)]),
    ]
    assert not program(graph(INPUTS, calls)).state


def test_every_tensor_of_a_list_is_written_into() -> None:
    calls: list[Call] = [
        ("aten::_foreach_add_.Scalar", [several(value(1), WEIGHT), pb.Argument(integer=1)]),
        ("aten::clone.default", [value(1)]),
    ]
    assert set(program(graph(INPUTS, calls)).state) == {"weight"}


def test_what_autograd_knows_is_no_state() -> None:
    calls: list[Call] = [
        ("aten::detach_.default", [WEIGHT]),
        ("aten::clone.default", [value(1)]),
    ]
    assert not program(graph(INPUTS, calls)).state


@pytest.mark.parametrize("operator", ["aten::set_data.default", "aten::set_.source_Tensor"])
def test_no_operator_may_give_a_tensor_the_memory_of_another(operator: str) -> None:
    with pytest.raises(OperatorMismatchError, match="may not be called by a program"):
        operator_schema(operator)
