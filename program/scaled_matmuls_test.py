"""Products that are scaled in BLAS are those that are scaled afterwards, to within rounding."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import fx

from slipway.program.interpreter import InterpretedGraph
from slipway.program.scaled_matmuls import scale_matmuls

_aten: Any = torch.ops.aten


def graph_of(
    number: float, scaling: Any = _aten.div.Tensor, matmul: Any = _aten.matmul.default
) -> fx.Graph:
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    product = graph.call_function(matmul, (a, b))
    graph.output((graph.call_function(scaling, (product, number)),))
    return graph


def run(graph: fx.Graph, *tensors: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        (result,) = InterpretedGraph(graph, {}).run(tensors)
    assert isinstance(result, torch.Tensor)
    return result


def operators_of(graph: fx.Graph, *tensors: torch.Tensor) -> set[str]:
    with torch.profiler.profile() as profile:
        run(graph, *tensors)
    return {event.key for event in profile.key_averages()}


def check(graph: fx.Graph, a: torch.Tensor, b: torch.Tensor, factor: float = 1.0) -> None:
    changed = scale_matmuls(graph)
    assert changed is not graph
    found, expected = run(changed, a, b), run(graph, a, b)
    assert (found.dtype, found.shape, found.stride()) == (
        expected.dtype,
        expected.shape,
        expected.stride(),
    )
    # What cancels out leaves the rounding of its parts.
    tolerances = {"rtol": 1e-5, "atol": 1e-5 * abs(factor)} if found.dtype == torch.float32 else {}
    torch.testing.assert_close(found, expected, equal_nan=True, **tolerances)


@settings(deadline=None, max_examples=200)
@given(
    batch=st.lists(st.integers(0, 4), max_size=3),
    sizes=st.tuples(*[st.integers(0, 20)] * 3),
    broadcast=st.sampled_from(["", "a", "b"]),
    is_missing=st.booleans(),
    transposed=st.booleans(),
    number=st.one_of(
        st.sampled_from([4, 4.0, -8.0, math.sqrt(3), 1e30, 1e-30]),
        st.floats(-100, 100).filter(lambda number: abs(number) > 0.01),
    ),
    scaling=st.sampled_from([_aten.div.Tensor, _aten.mul.Tensor]),
    seed=st.integers(0, 99),
)
def test_any_sizes(
    batch: list[int],
    sizes: tuple[int, int, int],
    broadcast: str,
    is_missing: bool,
    transposed: bool,
    number: float,
    scaling: Any,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, inner, columns = sizes
    # A dimension of one matrix may stand for all of the other's, or be missing.
    fewer = batch[1:] if is_missing else [1] * len(batch)
    shapes = {name: fewer if name == broadcast else batch for name in "ab"}
    a = torch.randn([*shapes["a"], rows, inner], generator=generator)
    b = torch.randn([*shapes["b"], columns, inner], generator=generator).mT
    if not transposed:
        b = b.contiguous()
    if isinstance(number, int) and scaling is _aten.mul.Tensor:
        number = float(number)
    factor = number if scaling is _aten.mul.Tensor else 1 / number
    check(graph_of(number, scaling), a, b, factor)


def test_heads_of_attention_need_one_operator() -> None:
    heads = torch.randn(3, 50, 3, 4, 16).permute(2, 0, 3, 1, 4)
    query, key = heads[0], heads[1].transpose(-2, -1)
    graph = graph_of(4.0)
    check(graph, query, key)
    operators = operators_of(scale_matmuls(graph), query, key)
    assert "aten::baddbmm" in operators
    assert not operators & {"aten::matmul", "aten::div"}


def test_batches_of_matrices() -> None:
    a, b = torch.randn(3, 5, 7), torch.randn(3, 7, 2)
    graph = graph_of(0.3, _aten.mul.Tensor, _aten.bmm.default)
    check(graph, a, b)
    assert "aten::baddbmm" in operators_of(scale_matmuls(graph), a, b)


@pytest.mark.parametrize("sizes", [(4,), (3, 4)])
def test_vectors_and_single_matrices(sizes: tuple[int, ...]) -> None:
    a = torch.randn(sizes)
    check(graph_of(4.0), a, a.t().contiguous())


def test_arguments_that_are_given_by_name_are_left_alone() -> None:
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    by_name = graph.call_function(_aten.matmul.default, (a,), {"other": b})
    product = graph.call_function(_aten.matmul.default, (a, b))
    graph.output(
        (
            graph.call_function(_aten.mul.Tensor, (by_name, 2.0)),
            graph.call_function(_aten.mul.Tensor, (product,), {"other": 2.0}),
        )
    )
    assert scale_matmuls(graph) is graph


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("scaling", [_aten.div.Tensor, _aten.mul.Tensor])
def test_any_dtype(dtype: torch.dtype, scaling: Any) -> None:
    a = torch.arange(24).reshape(2, 3, 4).to(dtype)
    check(graph_of(3.0, scaling), a, a.mT.contiguous())


def test_what_is_no_number_stays_so() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    a[0, 1, 2], b[1, 2, 3] = math.nan, math.inf
    check(graph_of(4.0), a, b)


@pytest.mark.parametrize("number", [0, 0.0, math.inf, math.nan, 1e39, 1e-39])
def test_numbers_without_an_inverse(number: float) -> None:
    graph = graph_of(number)
    assert scale_matmuls(graph) is graph


def test_an_integer_may_keep_integers_what_they_are() -> None:
    graph = graph_of(2, _aten.mul.Tensor)
    assert scale_matmuls(graph) is graph


def test_a_product_that_is_used_elsewhere_is_left_alone() -> None:
    graph = fx.Graph()
    product = graph.call_function(
        _aten.matmul.default, (graph.placeholder("a"), graph.placeholder("b"))
    )
    scaled = graph.call_function(_aten.div.Tensor, (product, 2.0))
    graph.output((scaled, product))
    assert scale_matmuls(graph) is graph


def test_what_is_written_to_after_the_product_is_read_before() -> None:
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    inner = graph.call_function(_aten.mul.Tensor, (a, 1.0))
    product = graph.call_function(_aten.matmul.default, (inner, b))
    graph.call_function(_aten.zero_.default, (inner,))
    graph.output((graph.call_function(_aten.div.Tensor, (product, 4.0)),))
    check(graph, torch.randn(2, 3, 4), torch.randn(2, 4, 5))


def test_the_graph_itself_stays_as_it_is() -> None:
    graph = graph_of(2.0)
    before = str(graph)
    assert scale_matmuls(graph) is not graph
    assert str(graph) == before
