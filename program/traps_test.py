from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from slipway.program.interpreter import InterpretedGraph
from slipway.program.traps import avoid_traps

_aten = torch.ops.aten


def traced(function: Callable[..., object], *examples: torch.Tensor) -> fx.GraphModule:
    """Returns the graph of a function that gives a tensor."""
    module = make_fx(function, pre_dispatch=True)(*examples)
    output = module.graph.output_node()
    output.args = ((output.args[0],),)
    module.recompile()
    return module


def results(module: fx.GraphModule, *given: torch.Tensor) -> list[torch.Tensor]:
    """Returns what a graph gives in Python and in torch's interpreter."""
    return [module(*given)[0], InterpretedGraph(module.graph, {}).run(given)[0]]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("other", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "divide",
    [
        lambda x, y: torch.div(x, y, rounding_mode="trunc"),
        lambda x, y: torch.divide(x, y, rounding_mode="trunc"),
        lambda x, y: x.clone().div_(y, rounding_mode="trunc"),
        lambda x, y: torch.div(x, y[1], rounding_mode="trunc"),
    ],
)
def test_the_least_integer_is_divided(
    divide: Callable[..., object], dtype: torch.dtype, other: torch.dtype
) -> None:
    least = torch.iinfo(dtype).min
    x, y = torch.tensor([7, -9, 5], dtype=dtype), torch.tensor([2, -1, 3], dtype=other)
    module = traced(divide, x, y)
    avoiding = avoid_traps(module)
    (expected,) = module(x, y)
    for actual in results(avoiding, x, y):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    for actual in results(avoiding, torch.tensor([least, least, 5], dtype=dtype), y):
        assert actual.dtype is expected.dtype
        wide = expected.dtype is not dtype
        assert actual[1].item() == (-least if wide else least)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32])
@pytest.mark.parametrize(
    "divide",
    [
        lambda x: torch.div(x, -1, rounding_mode="trunc"),
        lambda x: x.clone().div_(-1, rounding_mode="trunc"),
        lambda x: torch.ops.prims.div(x, -1),
        lambda x: _aten.div.Scalar_mode(x, -1, rounding_mode="trunc"),
        lambda x: _aten.div_.Scalar_mode(x.clone(), -1, rounding_mode="trunc"),
    ],
)
def test_the_least_integer_is_divided_by_a_number(
    divide: Callable[..., object], dtype: torch.dtype
) -> None:
    x = torch.tensor([7, 9, 5]).to(dtype)
    module = traced(divide, x)
    (expected,) = module(x)
    for actual in results(avoid_traps(module), x):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    if dtype.is_signed and not dtype.is_floating_point:
        least = torch.iinfo(dtype).min
        for actual in results(avoid_traps(module), torch.full((3,), least, dtype=dtype)):
            assert actual.tolist() == [least] * 3


@pytest.mark.parametrize("number", [1, -2, -1.0, 0.5])
def test_other_numbers_are_left_alone(number: float) -> None:
    module = traced(lambda x: torch.div(x, number, rounding_mode="trunc"), torch.ones(3))
    assert avoid_traps(module) is module


def test_primitives_divide_the_least_integer() -> None:
    least = torch.tensor([torch.iinfo(torch.int64).min])
    module = traced(lambda x, y: torch.ops.prims.div(x, y), least, torch.tensor([2]))
    for actual in results(avoid_traps(module), least, torch.tensor([-1])):
        assert torch.equal(actual, least)


def test_the_least_integer_is_divided_by_what_a_size_gives() -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    number = graph.call_function(operator.neg, (graph.call_function(_aten.sym_size.int, (y, 0)),))
    rounding = {"rounding_mode": "trunc"}
    graph.output((graph.call_function(_aten.div.Tensor_mode, (x, number), rounding),))
    avoiding = avoid_traps(fx.GraphModule(torch.nn.Module(), graph))
    least = torch.iinfo(torch.int64).min
    for size, expected in ((1, [least, -6]), (2, [2**62, -3])):
        for actual in results(avoiding, torch.tensor([least, 6]), torch.ones(size)):
            assert actual.tolist() == expected


def test_the_least_integer_is_divided_by_a_value() -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    number = graph.call_function(_aten.item.default, (y,))
    rounding = {"rounding_mode": "trunc"}
    graph.output((graph.call_function(_aten.div.Tensor_mode, (x, number), rounding),))
    avoiding = avoid_traps(fx.GraphModule(torch.nn.Module(), graph))
    least = torch.iinfo(torch.int64).min
    assert avoiding(torch.tensor([least, 6]), torch.tensor(-1))[0].tolist() == [least, -6]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("is_in_place", [False, True])
def test_the_least_integer_has_multiples(dtype: torch.dtype, is_in_place: bool) -> None:
    def multiple(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.clone().lcm_(y) if is_in_place else torch.lcm(x, y)

    y = torch.arange(-30, 31).to(dtype)
    module = traced(multiple, torch.ones_like(y), y)
    avoiding = avoid_traps(module)
    for x in (torch.full_like(y, 12), torch.full_like(y, -7), y):
        for actual in results(avoiding, x, y):
            torch.testing.assert_close(actual, module(x, y)[0], rtol=0, atol=0)
    least = torch.iinfo(dtype).min
    for actual in results(avoiding, torch.full_like(y, least), y):
        assert actual.tolist() == [least if number else 0 for number in y.tolist()]


@pytest.mark.parametrize("is_by_columns", [False, True])
def test_products_of_groups_leave_nothing_out(is_by_columns: bool) -> None:
    x, y = torch.ones(6, 16), torch.ones(2, 16, 16)
    if is_by_columns:
        x, y = torch.ones(2, 16, 16), torch.ones(16, 8)
    size = 8 if is_by_columns else 6
    ends = torch.tensor([2, size], dtype=torch.int32)
    module = traced(lambda x, y, ends: _aten._grouped_mm(x, y, ends), x, y, ends)
    avoiding = avoid_traps(module)
    for given in ([2, size], [0, 3], [0, 0]):
        for actual in results(avoiding, x, y, torch.tensor(given, dtype=torch.int32)):
            assert actual.unique().tolist() == [16.0]


def test_numbers_with_fractions_are_divided_as_they_are() -> None:
    x, y = torch.tensor([7.5, -1e30, torch.inf, torch.nan]), torch.tensor([-1.0, -1.0, -1.0, 0.0])
    module = traced(lambda x, y: torch.div(x, y, rounding_mode="trunc"), x, y)
    for actual in results(avoid_traps(module), x, y):
        torch.testing.assert_close(actual, module(x, y)[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_a_gradient_by_a_grid_is_of_the_picture(padding: int) -> None:
    def gradient(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        ones = torch.ones_like(grid[None, :, :, :, 0])
        return _aten.grid_sampler_2d_backward(  # type: ignore[no-any-return]
            ones[0][:, None], x, grid, 0, padding, False, [True, True]
        )[1]

    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    grid = torch.linspace(-1.5, 1.5, 162).reshape(1, 9, 9, 2)
    module = traced(gradient, x, grid)
    avoiding = avoid_traps(module)
    for actual in results(avoiding, x, grid):
        torch.testing.assert_close(actual, module(x, grid)[0], rtol=0, atol=0)
    for wrong in (torch.nan, torch.inf, -torch.inf, 3e38):
        for actual in results(avoiding, x, torch.full_like(grid, wrong)):
            assert actual.isfinite().all()


def test_subgraphs_are_kept_from_them_too() -> None:
    inner, outer = fx.Graph(), fx.Graph()
    x, y = inner.placeholder("x"), inner.placeholder("y")
    inner.output((inner.call_function(_aten.div.Tensor_mode, (x, y), {"rounding_mode": "trunc"}),))
    root = torch.nn.Module()
    root.subgraph = fx.GraphModule(torch.nn.Module(), inner)
    given = [outer.placeholder("x"), outer.placeholder("y")]
    outer.output(outer.call_module("subgraph", tuple(given)))
    least = torch.tensor([torch.iinfo(torch.int64).min])
    avoiding = avoid_traps(fx.GraphModule(root, outer))
    assert torch.equal(avoiding(least, torch.tensor([-1]))[0], least)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.div(x, 3, rounding_mode="trunc"),
        lambda x: torch.div(x, x, rounding_mode="floor"),
        lambda x: x // x,
        lambda x: x / x,
    ],
)
def test_other_graphs_are_left_alone(function: Callable[..., object]) -> None:
    module = traced(function, torch.tensor([7]))
    assert avoid_traps(module) is module
