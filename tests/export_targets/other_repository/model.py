"""A model of another repository, which //WORKSPACE declares as @other_repository."""

from __future__ import annotations

import json

import torch

from slipway.export import ExportSpec, data_path


class Shift(torch.nn.Module):
    """Returns x + shift, for x of shape (3,); float32."""

    def __init__(self) -> None:
        super().__init__()
        settings = json.loads(data_path("@other_repository//:settings.json").read_text())
        self.shift = torch.nn.Parameter(torch.full((settings["width"],), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.shift


def export_spec() -> ExportSpec:
    return ExportSpec(model=Shift(), args=torch.ones(3))
