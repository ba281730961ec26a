"""Graphs of models that take derivatives."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from slipway.export import ExportError, export


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["grad", "grad_and_value", "jacfwd", "jacrev"])
def test_derivatives_by_torch_func(name: str, strict: bool) -> None:
    def model(x: torch.Tensor) -> Any:
        return getattr(torch.func, name)(lambda x: x.exp().square().sum())(x)

    program = export(
        model, torch.randn(3), dynamic_shapes=("n",), symbols={"n": (1, 9)}, strict=strict
    )
    for size in (1, 9):
        x = torch.randn(size)
        torch.testing.assert_close(program(x), model(x))


def test_a_derivative_by_autograd_of_what_operators_keep_for_it() -> None:
    class Forces(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
            )

        def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.enable_grad():
                positions = positions.detach().requires_grad_()
                energy = self.layers(positions).exp().sum()
                (slope,) = torch.autograd.grad(energy, positions)
            return energy.detach(), -slope

    model = Forces().eval()
    program = export(
        model, torch.randn(5, 3), dynamic_shapes=("atoms, 3",), symbols={"atoms": (1, 40)}
    )
    for size in (1, 2, 40):
        positions = torch.randn(size, 3)
        torch.testing.assert_close(program(positions), model(positions))


def test_what_is_left_out_of_a_graph_is_said_where_no_derivative_is_why() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        results: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: results.append(x * 2))
        thread.start()
        thread.join()
        return results[0]

    with pytest.raises(ExportError, match="does not see it, as in another thread"):
        export(model, torch.ones(3))
