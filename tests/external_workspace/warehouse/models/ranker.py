"""Ranks parcels, with the help of this workspace's own `export` and `serving`."""

import torch
from export.records import COLUMNS
from serving.units import GRAMS_PER_KILOGRAM

import serving
from slipway.export import Dim, ExportSpec


class Ranker(torch.nn.Module):
    """Maps parcels of shape (batch, columns) to scores of shape (batch, counters), both float32."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = torch.nn.Linear(len(COLUMNS), serving.COUNTERS)

    def forward(self, parcels: torch.Tensor) -> torch.Tensor:
        return self.scores(parcels / GRAMS_PER_KILOGRAM)


def build_model() -> Ranker:
    """Returns the model with weights that a seed gives."""
    torch.manual_seed(3)
    return Ranker().eval()


def export_spec() -> ExportSpec:
    return ExportSpec(
        model=build_model(),
        args=torch.ones(2, len(COLUMNS)),
        dynamic_shapes={"parcels": {0: Dim("batch", min=1, max=8)}},
        output_names=["scores"],
    )
