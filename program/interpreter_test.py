"""Torch's interpreter gives what Python gives, and leaves to Python what it does not know."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import fx

from slipway.program import Program
from slipway.program.assertions import ASSERTIONS
from slipway.program.cases import AnsweredCase
from slipway.program.contract import Contract, InputSpec, OutputSpec, TensorSpec
from slipway.program.engine import EngineFailure
from slipway.program.errors import CompiledCodeError, NotInterpretableError
from slipway.program.expressions import Constant
from slipway.program.interpreter import InterpretedGraph, use_interpreter
from slipway.program.operators import operator_schema
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

aten = torch.ops.aten

Build = Callable[[fx.Graph, fx.Node], Sequence[Any]]


def run_both(
    build: Build, x: torch.Tensor, constants: dict[int, torch.Tensor] | None = None
) -> tuple[list[Any], list[Any]]:
    """Returns what the interpreter gives, and what Python does."""
    graph = fx.Graph()
    nodes = [graph.placeholder(f"constant_{place}") for place in constants or ()]
    results = build(graph, graph.placeholder("x"), *nodes)
    graph.output(tuple(results))
    expected = fx.GraphModule(torch.nn.Module(), graph)(*(constants or {}).values(), x)
    return InterpretedGraph(graph, constants or {}).run([x]), list(expected)


def check(build: Build, x: torch.Tensor, constants: dict[int, torch.Tensor] | None = None) -> None:
    found, expected = run_both(build, x, constants)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert (one.dtype, one.shape, one.stride()) == (
                other.dtype,
                other.shape,
                other.stride(),
            )
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        else:
            assert one == other


@pytest.mark.parametrize("factors", [None, [2.5]])
def test_rows_are_scaled_to_a_size_or_by_a_factor(factors: list[float] | None) -> None:
    def build(graph: fx.Graph, x: fx.Node) -> Sequence[Any]:
        call = graph.call_function
        doubled = call(operator.mul, (call(aten.sym_size.int, (x, 2)), 2))
        size = None if factors else [doubled]
        return [
            call(aten.upsample_linear1d.vec, (x, size, False, factors)),
            call(aten.upsample_linear1d.vec, (x, size, True, factors)),
            call(aten.upsample_nearest1d.vec, (x, size, factors)),
            call(aten._upsample_nearest_exact1d.vec, (x, size, factors)),
        ]

    for length in (1, 5, 8):
        check(build, torch.randn(2, 3, length))


def test_sizes_lists_and_parts() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> Sequence[Any]:
        call = graph.call_function
        rows = call(aten.sym_size.int, (x, 0))
        columns = call(aten.sym_size.int, (x, 1))
        half = call(operator.floordiv, (columns, 2))
        view = call(aten.view.default, (x, [rows, 2, half]))
        first, second = (
            call(operator.getitem, (call(aten.unbind.int, (view, 1)), k)) for k in (0, 1)
        )
        values = call(aten.topk.default, (first, 2))
        joined = call(aten.cat.default, ([first, second, first], 1))
        index = call(aten.arange.default, (rows,), {"device": torch.device("cpu")})
        return [
            joined,
            call(operator.getitem, (values, 0)),
            call(operator.getitem, (values, 1)),
            call(aten.index.Tensor, (joined, [None, index])),
            call(operator.add, (call(operator.mul, (rows, 3)), -1)),
            call(operator.mod, (call(operator.neg, (rows,)), 2)),
            call(torch.sym_max, (rows, columns)),
            call(operator.lt, (rows, columns)),
            call(aten.sum.dim_IntList, (x, [0]), {"keepdim": True, "dtype": torch.float64}),
            call(aten.clamp.default, (x,), {"max": 1}),
            call(aten.contiguous.default, (call(aten.permute.default, (view, [2, 0, 1])),)),
            7,
        ]

    check(build, torch.randn(3, 8))


@settings(deadline=None)
@given(
    dtype=st.sampled_from([torch.int64, torch.uint8, torch.float32, torch.bfloat16, torch.bool]),
    shape=st.sampled_from([(), (3,), (0, 2)]),
    number=st.sampled_from([2, -1, 0.5, 2.0]),
    target=st.sampled_from([aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor]),
)
def test_a_number_has_no_say_in_the_dtype(
    dtype: torch.dtype, shape: tuple[int, ...], number: int | float, target: Any
) -> None:
    x = torch.ones(shape).to(dtype)
    check(lambda graph, x: [graph.call_function(target, (x, number))], x)


@pytest.mark.parametrize("mode", [None, "floor", "trunc"])
@pytest.mark.parametrize("number", [5, 2.5])
def test_a_number_divides_and_the_quotient_is_rounded(mode: str | None, number: float) -> None:
    def build(graph: fx.Graph, x: fx.Node) -> list[fx.Node]:
        return [graph.call_function(aten.div.Tensor_mode, (x, number), {"rounding_mode": mode})]

    check(build, torch.arange(-9, 9))


@pytest.mark.parametrize("x", [torch.arange(-9, 9), torch.linspace(-2, 2, 9)])
@pytest.mark.parametrize("number", [5, -2.5])
def test_a_number_divides_and_the_quotient_is_rounded_down(x: torch.Tensor, number: float) -> None:
    check(lambda graph, x: [graph.call_function(aten.floor_divide.default, (x, number))], x)


def test_what_a_graph_asserts_is_asserted() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> Sequence[Any]:
        call = graph.call_function
        found = call(aten.nonzero.default, (x,))
        count = call(aten.sym_size.int, (found, 0))
        begin = call(aten.sym_storage_offset.default, (x,))
        ours = {name.split("::")[1]: function for name, function in ASSERTIONS.items()}
        call(ours["_assert_scalar.default"], (call(operator.ge, (count, 2)), "two or more"))
        call(ours["_assert_scalar.default"], (call(operator.le, (begin, 3)), "begins early"))
        call(
            ours["_assert_async.default"],
            (call(aten.all.default, (call(aten.lt.Scalar, (x, 9)),)),),
        )
        call(ours["sym_constrain_range_for_size.default"], (count,), {"max": 4})
        call(ours["sym_constrain_range.default"], (count,), {"min": 2})
        return [found, count, begin]

    check(build, torch.tensor([0, 3, 0, 4]))
    check(build, torch.arange(8)[3:7])
    graph = fx.Graph()
    graph.output(tuple(build(graph, graph.placeholder("x"))))
    interpreted = InterpretedGraph(graph, {})
    for values, reason in (
        (torch.tensor([0, 1, 0]), "two or more"),
        (torch.tensor([1, 2, 9]), "an assertion of the model"),
        (torch.tensor([1, 2, 3, 4, 5]), r"is 5; allowed: 0\.\.4"),
        (torch.arange(8)[4:7], "begins early"),
    ):
        with pytest.raises(EngineFailure, match=reason):
            interpreted.run([values])


@pytest.mark.parametrize(
    "memory_format",
    [
        torch.contiguous_format,
        torch.preserve_format,
        torch.channels_last,
        torch.channels_last_3d,
    ],
)
def test_a_memory_format_is_kept(memory_format: torch.memory_format) -> None:
    def build(graph: fx.Graph, x: fx.Node) -> Sequence[Any]:
        named: dict[str, Any] = {"memory_format": memory_format}
        return [
            graph.call_function(target, (x,), named)
            for target in (aten.clone.default, aten.zeros_like.default)
        ]

    dimensions = 5 if memory_format is torch.channels_last_3d else 4
    check(build, torch.randn([2, 3, 4, 5, 6][:dimensions]).transpose(0, 1))


def test_constants_are_not_asked_for() -> None:
    def build(graph: fx.Graph, x: fx.Node, *constants: fx.Node) -> Sequence[Any]:
        return [graph.call_function(aten.linear.default, (x, *constants))]

    check(build, torch.randn(2, 4), {0: torch.randn(3, 4), 1: torch.randn(3)})


def test_many_sizes_in_turn() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_function(aten.sym_size.int, (x, 0))
    graph.output((graph.call_function(aten.expand.default, (x, [4, size])),))
    interpreted = InterpretedGraph(graph, {})
    for count in (1, 5, 1, 300, 2):
        (result,) = interpreted.run([torch.arange(count)])
        assert result.shape == (4, count)
    assert torch._C._get_graph_executor_optimize()  # which is the whole process's


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (operator.truediv, (2,)),
        (math.floor, ()),
        (torch.sym_float, ()),
        (aten.pow.Tensor_Tensor, (2,)),
    ],
)
def test_what_it_does_not_know_is_left_to_python(target: Any, arguments: tuple[Any, ...]) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    subject = (
        x
        if isinstance(target, torch._ops.OpOverload)
        else graph.call_function(aten.sym_size.int, (x, 0))
    )
    graph.output((graph.call_function(target, (subject, *arguments)),))
    with pytest.raises(NotInterpretableError):
        InterpretedGraph(graph, {})


def test_an_operator_that_fails_says_why() -> None:
    table = torch.eye(3)

    def build(graph: fx.Graph, x: fx.Node, weight: fx.Node) -> Sequence[Any]:
        return [graph.call_function(aten.embedding.default, (weight, x))]

    graph = fx.Graph()
    weight, x = graph.placeholder("weight"), graph.placeholder("x")
    graph.output(tuple(build(graph, x, weight)))
    interpreted = InterpretedGraph(graph, {0: table})
    with pytest.raises(EngineFailure, match="index out of range"):
        interpreted.run([torch.tensor([3])])
    assert interpreted.run([torch.tensor([2])])[0].tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    "kind", [IndexError, MemoryError, NotImplementedError, TypeError, ValueError]
)
def test_whatever_an_operator_raises_is_a_failure(kind: type[Exception]) -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise kind("as it says")

    library = torch.library.Library("interpreter_test", "FRAGMENT")
    library.define(f"{kind.__name__}(Tensor x) -> Tensor")
    library.impl(kind.__name__, fail, "CPU")
    graph = fx.Graph()
    x = graph.placeholder("x")
    target = getattr(torch.ops.interpreter_test, kind.__name__).default
    graph.output((graph.call_function(target, (x,)),))
    with pytest.raises(EngineFailure, match=f"{kind.__name__}: as it says"):
        InterpretedGraph(graph, {}).run([torch.ones(2)])


@pytest.mark.parametrize("target", [operator.floordiv, operator.mod])
def test_a_division_by_0_fails_and_does_not_end_the_process(target: Any) -> None:
    graph = fx.Graph()
    size = graph.call_function(aten.sym_size.int, (graph.placeholder("x"), 0))
    divided = [graph.call_function(target, (number, size)) for number in (-7, 7)]
    graph.output(tuple(divided))
    interpreted = InterpretedGraph(graph, {})
    assert interpreted.run([torch.ones(4)]) == [target(-7, 4), target(7, 4)]
    with pytest.raises(EngineFailure, match="division by 0"):
        interpreted.run([torch.ones(0)])


def doubling(device: str = "cpu") -> Program:
    """A program of one case, which multiplies two numbers by 2."""
    pair, leaf = TensorSpec(ScalarType.FLOAT32, (Constant(2),)), Tree(Kind.LEAF)
    contract = Contract(
        method="forward",
        symbols=(),
        inputs=(InputSpec("x", pair),),
        input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (leaf,)), Tree(Kind.DICT))),
        parameters=("x",),
        outputs=(OutputSpec("y", pair),),
        output_tree=leaf,
    )
    name = "aten::mul.Tensor"
    graphs = pb.ProgramGraph(operators=[pb.Operator(name=name, schema=operator_schema(name))])
    graph = graphs.methods.add(inputs=[pb.GraphInput(weight=0), pb.GraphInput(input=0)])
    graph.nodes.add(operator=0, arguments=[pb.Argument(value=0), pb.Argument(value=1)])
    graph.outputs.add(value=2)
    case = AnsweredCase("forward", {"x": torch.ones(2)}, {"y": torch.full((2,), 2.0)})
    return Program(
        {"forward": contract},
        graphs,
        {"weight": torch.full((2,), 2.0, device=device)},
        device=torch.device(device),
        cases=lambda: [case],
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_programs_on_any_device_are_tried_with_their_cases_there(device: str) -> None:
    program = doubling(device)
    assert use_interpreter(program) == []
    assert program.methods["forward"].engine is not None


class Fails:
    """An engine that cannot do what the graph can."""

    def run(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        raise EngineFailure("as it says")


def test_a_call_that_only_an_engine_cannot_do_is_done_by_the_graph(
    caplog: pytest.LogCaptureFixture,
) -> None:
    program = doubling()
    program.methods["forward"].use(Fails())
    assert program(torch.ones(2)).tolist() == [2.0, 2.0]
    assert "the engine of method 'forward' failed where its graph does not: as it says" in (
        caplog.text
    )


class GivesThree:
    """An engine that gives another shape than is promised."""

    def run(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        return [torch.ones(3)]


def test_a_shape_that_an_engine_gives_against_the_contract_is_named() -> None:
    program = doubling()
    program.methods["forward"].use(GivesThree())
    with pytest.raises(
        CompiledCodeError, match=r"output 'y' of .* is \[3\]; the contract promises \[2\]"
    ):
        program(torch.ones(2))
