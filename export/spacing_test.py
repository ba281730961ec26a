"""Numbers that are evenly spaced, as many as a size is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional

from slipway.export import export


def _reference_points(x: torch.Tensor) -> torch.Tensor:
    height, width = x.shape
    rows = torch.linspace(0.5, height - 0.5, height, dtype=x.dtype) / height
    columns = torch.linspace(0.5, end=width - 0.5, steps=width) / width
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


def _resampled(x: torch.Tensor) -> torch.Tensor:
    theta = torch.eye(2, 3)[None] * 0.5
    grid = functional.affine_grid(theta, [1, 1, *x.shape], align_corners=False)
    return functional.grid_sample(x[None, None], grid, align_corners=False)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.linspace(-1, 1, x.shape[0]),
        lambda x: torch.linspace(3, 0.25, 2 * x.shape[0] + 1, dtype=torch.float64),
        lambda x: torch.linspace(0, 1, 7) + x.shape[0],
        lambda x: torch.cond(
            x.sum() > 0,
            lambda row: row * torch.linspace(0, 1, row.shape[0]),
            lambda row: row + 1,
            (x.flatten(),),
        ),
        _reference_points,
        _resampled,
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_numbers_that_are_evenly_spaced_may_be_as_many_as_a_size(model: Any, strict: bool) -> None:
    program = export(
        model,
        torch.randn(3, 4),
        dynamic_shapes=("n, m",),
        symbols={"n": (1, 9), "m": (1, 9)},
        strict=strict,
    )
    assert not program.contract.relations
    for shape in itertools.product((1, 2, 3, 8, 9), repeat=2):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


def test_evenly_spaced_numbers_begin_and_end_exactly() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.linspace(-0.7, 0.3, x.shape[0])

    program = export(model, torch.ones(3), dynamic_shapes=("n",), symbols={"n": (2, 300)})
    for count in range(2, 300):
        x = torch.ones(count)
        assert torch.equal(program(x)[[0, -1]], model(x)[[0, -1]])
