"""A multilayer perceptron that scores feature vectors, a batch at a time."""

from __future__ import annotations

import torch
from torch import nn

from slipway.export import Dim, ExportSpec


class MLP(nn.Module):
    """Maps features of shape (batch, 256) to scores of shape (batch, 10), both float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(256, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)


def build_model() -> MLP:
    """Returns the model with the weights that a seed gives, the same everywhere."""
    torch.manual_seed(7)
    return MLP().eval()


def export_spec() -> ExportSpec:
    batch = Dim("batch", min=1, max=64)
    return ExportSpec(
        model=build_model(),
        args=torch.randn(2, 256),
        dynamic_shapes={"features": {0: batch}},
        output_names=["scores"],
    )
