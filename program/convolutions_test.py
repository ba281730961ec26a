"""Convolutions that are prepared give what the graph gives, wherever in a graph they are."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import fx, nn
from torch.nn import functional

from slipway.program.convolutions import prepare_convolutions
from slipway.program.interpreter import InterpretedGraph

_PREPARED = torch.ops.mkldnn._convolution_pointwise.default


def graph_of(model: nn.Module, x: torch.Tensor) -> tuple[fx.Graph, dict[int, torch.Tensor]]:
    """Returns a model's graph, with its weights as inputs, and these by their places."""
    exported = torch.export.export(model.eval(), (x,))
    # What torch gives has one output, and takes a tuple.
    weights = {
        place: {**exported.state_dict, **exported.constants}[str(item.target)]
        for place, item in enumerate(exported.graph_signature.input_specs)
        if item.target is not None
    }
    return exported.graph, {place: weight.detach() for place, weight in weights.items()}


def outputs_of(
    graph: fx.Graph, weights: dict[int, torch.Tensor], x: torch.Tensor
) -> list[torch.Tensor]:
    with torch.inference_mode():
        results: list[torch.Tensor] = InterpretedGraph(graph, weights).run([x])
        return results


def prepared_count(graph: fx.Graph) -> int:
    return sum(node.target is _PREPARED for node in graph.nodes)


def check(model: nn.Module, x: torch.Tensor, count: int) -> None:
    """Checks that so many convolutions are prepared, and the results are the same."""
    graph, weights = graph_of(model, x)
    prepared, prepared_weights = prepare_convolutions(graph, weights)
    assert prepared_count(prepared) == count
    for found, expected in zip(
        outputs_of(prepared, prepared_weights, x), outputs_of(graph, weights, x), strict=True
    ):
        assert found.stride() == expected.stride()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


class Block(nn.Module):
    """Convolution, batch normalisation, and what else a network has around them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.plain = nn.BatchNorm2d(8, affine=False)
        for norm in (self.norm, self.plain):
            nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        nn.init.normal_(self.norm.weight)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inner = functional.relu(self.norm(self.first(x)))
        outer = functional.relu(self.plain(self.second(inner)) + inner)
        # Some of these ask how a tensor lies in memory.
        return (
            outer,
            self.head(outer.mean((2, 3))),
            outer.permute(0, 2, 3, 1),
            torch.flatten(outer, 1),
            outer.view(outer.shape[0], 2, -1),
            functional.max_pool2d(outer, 2),
        )


def test_a_network_gives_the_same_in_the_same_layout() -> None:
    check(Block(), torch.randn(2, 3, 18, 14), 2)


def test_what_is_not_a_number_stays_so() -> None:
    x = torch.randn(2, 3, 18, 14)
    x[0, 1, 4, 4] = float("nan")
    x[1, 0, 2, 2] = float("inf")
    check(Block(), x, 2)


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(0, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    has_bias=st.booleans(),
    is_normalised=st.booleans(),
)
def test_any_convolution(
    batch: int,
    groups: int,
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    dilation: int,
    has_bias: bool,
    is_normalised: bool,
) -> None:
    model = nn.Sequential(
        nn.Conv2d(
            4,
            8,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=has_bias,
        ),
        nn.BatchNorm2d(8) if is_normalised else nn.Identity(),
    ).eval()
    graph, weights = graph_of(model, torch.randn(2, 4, 9, 11))
    prepared, prepared_weights = prepare_convolutions(graph, weights)
    assert prepared_count(prepared) == 1
    assert not any(node.target is torch.ops.aten.batch_norm.default for node in prepared.nodes)
    x = torch.randn(batch, 4, 9, 11)
    (found,) = outputs_of(prepared, prepared_weights, x)
    torch.testing.assert_close(found, model(x).detach(), rtol=1e-4, atol=1e-5)


class Untouched(nn.Module):
    """Convolutions that cannot be prepared."""

    def __init__(self) -> None:
        super().__init__()
        self.precise = nn.Conv2d(3, 3, 1).double()
        self.same = nn.Conv2d(3, 3, 3, padding="same")
        self.kernel = nn.Parameter(torch.randn(2, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            self.precise(x.double()),
            self.same(x),
            functional.conv2d(x, x[:, :, :1, :1]),
            functional.conv2d(self.kernel, self.kernel[:, :, :1]),
        )


def test_other_convolutions_are_left_alone() -> None:
    graph, weights = graph_of(Untouched(), torch.randn(2, 3, 8, 8))
    prepared, same_weights = prepare_convolutions(graph, weights)
    assert prepared is graph
    assert same_weights == weights


def test_a_graph_that_writes_into_its_tensors_is_left_alone() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.convolution(x)
            y.view(-1)[0] = 1.0
            return y

    graph, weights = graph_of(Writing(), torch.randn(2, 3, 8, 8))
    assert prepare_convolutions(graph, weights)[0] is graph


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_a_batch_normalisation_of_extreme_statistics(value: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var.fill_(value)
    check(model, torch.randn(2, 3, 4, 4), 1)


class Normalised(nn.Module):
    """A convolution, and a batch normalisation that cannot be left to it, or not alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.kind = kind
        self.convolution = nn.Conv2d(3, 4, 1)
        self.mean, self.variance = nn.Buffer(torch.randn(4)), nn.Buffer(torch.rand(4) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convolution(x)
        mean = self.mean + x.mean() if self.kind == "by what is computed" else self.mean
        if self.kind == "by the batch":
            return functional.batch_norm(y, None, None, training=True)
        result = functional.batch_norm(y, mean, self.variance, eps=0.25)
        return result + y if self.kind == "used twice" else result


@pytest.mark.parametrize(
    ("kind", "is_left"),
    [("by what is computed", 1), ("by the batch", 1), ("used twice", 1), ("alone", 0)],
)
def test_which_batch_normalisations_are_taken_over(kind: str, is_left: int) -> None:
    model, x = Normalised(kind), torch.randn(2, 3, 5, 4)
    check(model, x, 1)
    prepared, _ = prepare_convolutions(*graph_of(model, x))
    found = [node for node in prepared.nodes if node.target is torch.ops.aten.batch_norm.default]
    assert len(found) == is_left


def test_a_bias_that_is_computed_and_a_constant_input_are_left_alone() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 1, 1))
            self.constant = nn.Buffer(torch.randn(1, 3, 2, 2))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            bias = x.mean() + torch.arange(4.0)
            return (
                functional.conv2d(x, self.weight, bias),
                functional.conv2d(self.constant, self.weight),
            )

    graph, weights = graph_of(Computed(), torch.randn(2, 3, 5, 4))
    assert prepare_convolutions(graph, weights)[0] is graph
