"""Composite operators over sequences of any length."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from slipway.export import ExportError, export

SYMBOLS = {"n": (1, 9), "m": (1, 9)}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.cov(x, correction=0, fweights=torch.arange(x.shape[1]) + 1),
        lambda x: torch.cov(x.T, aweights=x[:, 0].abs().double()),
        lambda x: torch.cov(x, fweights=torch.arange(x.shape[1]) + 1, aweights=x[0].abs()),
        lambda x: torch.cov(x.flatten()),
        lambda x: torch.func.grad(lambda y: torch.cov(y, aweights=y[0] ** 2).sum())(x.double()),
    ],
)
def test_observations_of_covariances_may_have_weights(model: Any, strict: bool) -> None:
    program = export(
        model,
        torch.randn(3, 4),
        dynamic_shapes=("n, m",),
        symbols={"n": (2, 9), "m": (2, 9)},
        strict=strict,
    )
    assert not program.contract.relations
    for shape in itertools.product((2, 3, 9), (2, 4, 9)):
        x = torch.randn(shape) * 3
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        lambda x: x.cov(),
        lambda x: torch.cov(x, correction=0),
        lambda x: torch.cov(x.long()),
        lambda x: torch.cov(x[0]),
        lambda x: torch.corrcoef(torch.complex(x, x.flip(0))),
        lambda x: x.corrcoef(),
    ],
)
def test_covariances_are_those_of_any_length(model: Any, strict: bool) -> None:
    program = export(
        model,
        torch.randn(3, 6),
        dynamic_shapes=("3, length",),
        symbols={"length": (1, None)},
        strict=strict,
    )
    assert not program.contract.relations
    for length in (1, 2, 3, 9, 200):
        x = 3 * torch.randn(3, length)
        torch.testing.assert_close(program(x), model(x), equal_nan=True)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.gradient(x),
        lambda x: torch.gradient(x, spacing=0.5, dim=-1, edge_order=2)[0],
        lambda x: torch.gradient(x.long(), spacing=[2, 0.25], dim=(1, 0)),
        lambda x: torch.gradient(x, spacing=[2.0, 3.0], edge_order=2),
        lambda x: torch.func.grad(lambda y: torch.gradient(y, dim=0)[0].square().sum())(x),
        lambda x: torch.func.grad(
            lambda y: torch.gradient(y, spacing=0.5, dim=1, edge_order=2)[0].square().sum()
        )(x),
    ],
)
def test_slopes_are_those_of_any_length(model: Any, strict: bool) -> None:
    program = export(
        model,
        torch.randn(4, 5),
        dynamic_shapes=("n, m",),
        symbols={"n": (3, 9), "m": (3, 9)},
        strict=strict,
    )
    assert not program.contract.relations
    for shape in itertools.product((3, 4, 9), repeat=2):
        x = torch.randn(shape) * 3
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_slope_needs_two_elements() -> None:
    with pytest.raises(ExportError) as caught:
        export(
            lambda x: torch.gradient(x, dim=1)[0],
            torch.randn(3, 4),
            dynamic_shapes=("n, m",),
            symbols=SYMBOLS,
        )
    assert "Dim('m', min=2, max=9)" in caught.value.advice


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("shape", ["n, k, 1", "1, k, 3", "n, k, 3", "1, k, 1"])
def test_elements_are_taken_along_a_dimension_of_any_length(shape: str, strict: bool) -> None:
    def model(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return torch.take_along_dim(x, places, dim=-2)

    def places(rows: int, count: int, length: int) -> torch.Tensor:
        sizes = {"n": rows, "k": count, "1": 1, "3": 3}
        return torch.randint(length, [sizes[size] for size in shape.split(", ")])

    program = export(
        model,
        (torch.randn(2, 4, 3), places(2, 5, 4)),
        dynamic_shapes=("n, m, 3", shape),
        symbols=SYMBOLS | {"k": (1, 9)},
        strict=strict,
    )
    assert not program.contract.relations
    for rows, length, count in itertools.product((1, 2, 9), (1, 4), (1, 4, 7)):
        call = torch.randn(rows, length, 3), places(rows, count, length)
        torch.testing.assert_close(program(*call), model(*call))


def test_elements_are_taken_of_what_lies_in_one_row() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.take_along_dim(x, x.flatten().argsort()[:1])

    program = export(model, torch.randn(3, 4), dynamic_shapes=("n, m",), symbols=SYMBOLS)
    assert not program.contract.relations
    x = torch.randn(5, 1)
    torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        nn.MaxPool1d(2),
        nn.MaxPool1d(3, stride=2, padding=1, ceil_mode=True),
        nn.MaxPool1d(2, stride=1, dilation=2),
        lambda x: functional.max_pool1d(x.flatten(1), 2),
        lambda x: torch.max_pool1d(torch.relu(x), [3], [1]),
    ],
)
def test_the_largest_of_neighbours_is_found_in_sequences_of_any_length(
    model: Any, strict: bool
) -> None:
    program = export(
        model,
        torch.randn(2, 4, 6),
        dynamic_shapes=("rows, 4, length",),
        symbols={"rows": (1, None), "length": (3, 200)},
        strict=strict,
    )
    assert not program.contract.relations
    targets = {str(node.target) for node in program.methods["forward"].graph_module.graph.nodes}
    assert "aten.max_pool1d.default" in targets
    for rows, length in itertools.product((1, 2, 5), (3, 4, 5, 6, 17, 200)):
        x = torch.randn(rows, 4, length)
        assert torch.equal(program(x), model(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        lambda x: x.diff(),
        lambda x: torch.diff(x, 3, 0),
        lambda x: (x > 0).diff(),
        lambda x: x.diff(n=2, prepend=x[:, :1] * 2, append=x),
    ],
)
def test_differences_of_neighbours_are_those_of_any_length(model: Any, strict: bool) -> None:
    program = export(
        model,
        torch.randn(3, 6),
        dynamic_shapes=("rows, length",),
        symbols={"rows": (0, 9), "length": (0, None)},
        strict=strict,
    )
    assert not program.contract.relations
    targets = {str(node.target) for node in program.methods["forward"].graph_module.graph.nodes}
    assert "aten.diff.default" in targets
    for rows, length in itertools.product((0, 1, 2, 5), (0, 1, 2, 3, 9)):
        x = torch.randn(rows, length)
        assert torch.equal(program(x), model(x))
