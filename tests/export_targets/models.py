"""Models whose weights, settings and sizes come from files."""

from __future__ import annotations

import json

import torch
from torch import nn

from slipway.export import Dim, ExportSpec, data_path, load_weights


class Scaler(nn.Module):
    """Returns scale * x + shift, for x of shape (rows, 3); float32."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x + self.shift


def spec(model: nn.Module) -> ExportSpec:
    rows = Dim("rows", min=1, max=16)
    return ExportSpec(model=model, args=torch.ones(2, 3), dynamic_shapes={"x": {0: rows}})


def scaler() -> ExportSpec:
    return spec(Scaler())


def scaler_without_values() -> ExportSpec:
    with torch.device("meta"):
        return ExportSpec(model=Scaler(), args=torch.ones(2, 3, device="cpu"))


def configured() -> ExportSpec:
    """Takes a factor from a file that is checked in, and one from a file that the build makes."""
    model = Scaler()
    with torch.no_grad():
        for label in ("checked_in.json", "made.json"):
            path = data_path(f"//tests/export_targets:{label}")
            model.scale *= json.loads(path.read_text())["factor"]
    return spec(model)


def loads_by_itself() -> ExportSpec:
    model = Scaler()
    load_weights(model, data_path("//tests/export_targets:scaler.pt"))
    return spec(model)


def twice() -> ExportSpec:
    class Twice(Scaler):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    return spec(Twice())
