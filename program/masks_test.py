"""Filling by a mask in another way gives the same bits, whatever the values and the sizes are."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from torch import fx

from slipway.program.interpreter import InterpretedGraph
from slipway.program.masks import clamp_by_masks

_aten = torch.ops.aten
_SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 3e38, -3e38]


def graph_of(value: float) -> fx.Graph:
    graph = fx.Graph()
    x, mask = graph.placeholder("x"), graph.placeholder("mask")
    graph.output((graph.call_function(_aten.masked_fill.Scalar, (x, mask, value)),))
    return graph


def operators_of(graph: fx.Graph, x: torch.Tensor, mask: torch.Tensor) -> set[str]:
    engine = InterpretedGraph(graph, {})
    with torch.inference_mode(), torch.profiler.profile() as profile:
        engine.run([x, mask])
    return {event.key for event in profile.key_averages()}


def check(x: torch.Tensor, mask: torch.Tensor, value: float) -> None:
    changed = clamp_by_masks(graph_of(value))
    with torch.inference_mode():
        (found,) = InterpretedGraph(changed, {}).run([x, mask])
    expected = x.masked_fill(mask, value)
    assert (found.dtype, found.shape, found.stride()) == (
        expected.dtype,
        expected.shape,
        expected.stride(),
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.signbit() & ~found.isnan(), expected.signbit() & ~expected.isnan())


@settings(deadline=None, max_examples=200)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    ones=st.lists(st.booleans(), min_size=4, max_size=4),
    dropped=st.integers(0, 3),
    value=st.one_of(
        st.sampled_from([-1e9, 0.1, -math.inf, math.inf, -10000, 0, torch.finfo().min, 1e-45]),
        st.floats(width=32, allow_nan=False),
    ),
    special=st.lists(st.sampled_from(_SPECIAL), max_size=3),
    seed=st.integers(0, 99),
)
@example([0, 0, 1], [False, True, False, False], 0, -1e9, [], 0)
def test_any_mask(
    sizes: list[int],
    ones: list[bool],
    dropped: int,
    value: float,
    special: list[float],
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sizes, generator=generator)
    for number in special:
        if x.numel():
            place = int(torch.randint(x.numel(), (1,), generator=generator))
            x.view(-1)[place] = number
    broadcast = [1 if one else size for size, one in zip(sizes, ones, strict=False)]
    mask = torch.rand(broadcast[dropped:], generator=generator) < 0.5
    check(x, mask, value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.bool])
def test_any_dtype(dtype: torch.dtype) -> None:
    x = torch.arange(4 * 8 * 8).reshape(4, 8, 8).to(dtype)
    check(x, torch.rand(1, 1, 8) < 0.5, -3.0)


def test_a_mask_with_more_dimensions_than_what_it_fills() -> None:
    check(torch.randn(8), torch.rand(2, 8) < 0.5, -1.0)
    check(torch.randn(8, 1, 8), torch.rand(1, 8) < 0.5, -1.0)
    check(torch.randn(8, 8).t(), torch.rand(1, 8) < 0.5, -1.0)
    check(torch.randn(3), torch.tensor(True), -1.0)


@pytest.mark.parametrize("value", [-1e9, -math.inf, -1])
def test_vectors_are_clamped_unless_something_is_not_a_number(value: float) -> None:
    graph = clamp_by_masks(graph_of(value))
    x, mask = torch.randn(2, 4, 50, 50), torch.rand(2, 1, 1, 50) < 0.5
    assert "aten::masked_fill" not in operators_of(graph, x, mask)
    x[0, 0, 0, 0] = math.nan
    assert "aten::masked_fill" in operators_of(graph, x, mask)


def test_a_value_that_is_given_by_name_is_left_alone() -> None:
    graph = fx.Graph()
    x, mask = graph.placeholder("x"), graph.placeholder("mask")
    graph.output((graph.call_function(_aten.masked_fill.Scalar, (x, mask), {"value": -1.0}),))
    assert clamp_by_masks(graph) is graph


@pytest.mark.parametrize("value", [0, -0.0, math.nan, 1e39, 2**60 + 1])
def test_values_that_clamping_would_change(value: float) -> None:
    graph = graph_of(value)
    assert clamp_by_masks(graph) is graph


def test_the_graph_itself_stays_as_it_is() -> None:
    graph = graph_of(-1.0)
    before = str(graph)
    assert clamp_by_masks(graph) is not graph
    assert str(graph) == before
