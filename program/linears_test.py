"""Linear layers that oneDNN computes give what the graph gives, however many rows there are."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import fx, nn

from slipway.program.interpreter import InterpretedGraph
from slipway.program.linears import join_linears, linear_chain, onednn_is_faster, pad_rows

_ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU}
_ONEDNN = "mkldnn::_linear_pointwise"

pytestmark = pytest.mark.skipif(not torch._C._has_mkldnn, reason="torch has no oneDNN here")


def graph_of(model: nn.Module, x: torch.Tensor) -> tuple[fx.Graph, dict[int, torch.Tensor]]:
    """Returns a model's graph for any number of rows, and its weights by their places."""
    rows = {0: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(model.eval(), (x,), dynamic_shapes=(rows,))
    weights = {
        place: exported.state_dict[str(item.target)].detach()
        for place, item in enumerate(exported.graph_signature.input_specs)
        if item.target is not None
    }
    return exported.graph, weights


def chains(graph: fx.Graph) -> list[list[str]]:
    """Returns the activations of each chain in a graph."""
    return [list(node.args[3]) for node in graph.nodes if node.target is linear_chain]  # type: ignore[call-overload]


def operators_of(engine: InterpretedGraph, x: torch.Tensor) -> set[str]:
    with torch.inference_mode(), torch.profiler.profile() as profile:
        engine.run([x])
    return {event.key for event in profile.key_averages()}


def check(model: nn.Module, x: torch.Tensor, *, count: int = 1) -> None:
    """Checks that a model with so many chains gives the same as before."""
    graph, weights = graph_of(model, torch.randn(3, *x.shape[1:]))
    joined = join_linears(graph, weights)
    assert len(chains(joined)) == count
    with torch.inference_mode():
        found = InterpretedGraph(joined, weights).run([x])
        expected = InterpretedGraph(graph, weights).run([x])
    for one, other in zip(found, expected, strict=True):
        assert one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 200),
    middle=st.sampled_from([(), (1,), (5,), (2, 3)]),
    widths=st.lists(st.sampled_from([1, 3, 64, 150]), min_size=2, max_size=5),
    activations=st.lists(st.sampled_from(sorted(_ACTIVATIONS)), min_size=4, max_size=4),
    has_bias=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_any_chain(
    rows: int,
    middle: tuple[int, ...],
    widths: list[int],
    activations: list[str],
    has_bias: list[bool],
) -> None:
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(before, after, bias=has_bias[place])]
        layers += [_ACTIVATIONS[activations[place]]()]
    check(nn.Sequential(*layers), torch.randn(rows, *middle, widths[0]))


@pytest.mark.parametrize("activation", sorted(_ACTIVATIONS))
def test_what_is_not_finite_stays_so(activation: str) -> None:
    x = torch.randn(300, 128)
    x[1, 5], x[2, 6], x[3, 7] = float("nan"), float("inf"), -float("inf")
    check(nn.Sequential(nn.Linear(128, 128), _ACTIVATIONS[activation]()), x)


def test_a_tensor_that_lies_otherwise_in_memory() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.transpose(1, 2)) + 1

    check(Turned(), torch.randn(20, 64, 40))


@pytest.mark.parametrize(("width", "fewest"), [(256, 16), (1024, 8)])
def test_the_number_of_rows_decides(width: int, fewest: int) -> None:
    model = nn.Sequential(nn.Linear(width, 512), nn.GELU(), nn.Linear(512, width))
    graph, weights = graph_of(model, torch.randn(3, width))
    engine = InterpretedGraph(join_linears(graph, weights), weights)
    assert _ONEDNN not in operators_of(engine, torch.randn(fewest - 1, width))
    operators = operators_of(engine, torch.randn(fewest, width))
    assert _ONEDNN in operators
    assert {"aten::linear", "aten::gelu"}.isdisjoint(operators)


def test_numbers_of_rows_are_rounded_up_to_few() -> None:
    padded = {rows: pad_rows(torch.empty(rows, 1)).size(0) for rows in range(16, 512)}
    assert all(rows <= more <= max(rows + 7, rows * 5 / 4) for rows, more in padded.items())
    assert len(set(padded.values())) < 20

    graph, weights = graph_of(nn.Linear(256, 512), torch.randn(3, 256))
    engine = InterpretedGraph(join_linears(graph, weights), weights)
    some = (16, 17, 100, 511)
    with torch.inference_mode(), torch.profiler.profile(record_shapes=True) as profile:
        for rows in some:
            engine.run([torch.randn(rows, 256)])
    shapes = [event.input_shapes[0] for event in profile.events() if event.name == _ONEDNN]
    assert shapes == [[padded[rows], 256] for rows in some]


def test_only_what_alone_uses_a_result_is_joined_to_it() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
            self.third, self.fourth = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            inner = self.second(self.first(x).relu())
            return inner, nn.functional.gelu(self.fourth(self.third(inner)), approximate="tanh")

    model = Branches()
    graph, weights = graph_of(model, torch.randn(3, 64))
    before = str(graph)
    joined = join_linears(graph, weights)
    assert chains(joined) == [["relu", "none"], ["none", "none"]]
    assert torch.ops.aten.gelu.default in {node.target for node in joined.nodes}
    assert str(graph) == before
    check(model, torch.randn(600, 64), count=2)


@pytest.mark.parametrize("place", [1, 2])
def test_what_is_written_to_after_the_first_layer_is_read_before(place: int) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given = x * 1
            inner = self.first(given)
            if place == 1:
                given.zero_()
            inner = self.second(inner.relu())
            if place == 2:
                given.zero_()
            return inner.relu()

    for rows in (2, 600):
        check(Written(), torch.randn(rows, 64))


def test_what_is_not_joined() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.inner.weight * 2)

    class Other(nn.Module):
        def __init__(self, weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(weight))
            self.bias = nn.Parameter(torch.randn(bias)) if bias != (0,) else None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight, self.bias)

    others = [Other((8, 8), ()), Other((8, 8), (1,)), Other((8, 8), (1, 8)), Other((8,), (0,))]
    for model in (Computed(), nn.Linear(8, 8).double(), nn.Linear(8, 0), nn.ReLU(), *others):
        dtype = torch.float64 if any(w.dtype == torch.float64 for w in model.parameters()) else None
        graph, weights = graph_of(model, torch.randn(3, 8, dtype=dtype))
        assert join_linears(graph, weights) is graph


def test_a_bias_that_is_given_by_name_is_not_lost() -> None:
    graph = fx.Graph()
    weight, bias, x = map(graph.placeholder, ("weight", "bias", "x"))
    linear = torch.ops.aten.linear.default
    graph.output((graph.call_function(linear, (x, weight), {"bias": bias}),))
    assert join_linears(graph, {0: torch.randn(8, 8), 1: torch.randn(8)}) is graph


def test_whether_onednn_is_faster_is_said_once_and_for_all() -> None:
    assert onednn_is_faster() is onednn_is_faster()
