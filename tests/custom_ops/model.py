"""A model that calls it, and whose two methods share a weight."""

from __future__ import annotations

import torch

import tests.custom_ops.doubling  # noqa: F401  (registers the operator)
from slipway.export import ExportSpec, MethodSpec


class Scaler(torch.nn.Module):
    """Multiplies numbers of shape (rows,) by 6, or divides them by it; float32."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.doubling.twice(x) * self.factor

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x / (2 * self.factor)


def export_spec() -> ExportSpec:
    method = MethodSpec(args=torch.ones(3), dynamic_shapes={"x": "rows"}, symbols={"rows": (1, 10)})
    return ExportSpec(model=Scaler(), methods={"forward": method, "inverse": method})
