"""A ranker of items, with trained weights: its sizes are in a file, and so are its weights."""

from __future__ import annotations

import json

import torch
from torch import nn

from slipway.export import Dim, ExportSpec, data_path


class Ranker(nn.Module):
    """Scores of all items for queries of shape (batch, width); float32 in and out."""

    def __init__(self, items: int, width: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.items = nn.Embedding(items, width)

    def forward(self, query: torch.Tensor) -> torch.Tensor:
        return self.query(query) @ self.items.weight.T


def ranker() -> Ranker:
    settings = json.loads(data_path("//examples/ranker:settings.json").read_text())
    return Ranker(settings["items"], settings["width"]).eval()


def export_spec() -> ExportSpec:
    # Without values: those of `weights` in the BUILD file are loaded when this has returned.
    with torch.device("meta"):
        model = ranker()
    return ExportSpec(
        model=model,
        args=torch.randn(2, model.items.embedding_dim),
        dynamic_shapes={"query": {0: Dim("batch", min=1, max=256)}},
        output_names=["scores"],
    )
