"""A model whose contract relates two inputs, and looks values up."""

import torch
from torch import nn

from slipway.export import Dim, ExportSpec


class Ranker(nn.Module):
    """Scores rows by their tokens and features, and doubles what belongs to the rows in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 16)
        self.layer = nn.Linear(16, 4)

    def forward(
        self, tokens: torch.Tensor, margins: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.layer(self.table(tokens).mean(1)).relu()
        return scores, margins * 2 + 1


def export_spec() -> ExportSpec:
    batch = Dim("batch", min=0, max=64)
    return ExportSpec(
        model=Ranker().eval(),
        args=(torch.arange(12).reshape(3, 4), torch.randn(7)),
        dynamic_shapes={"tokens": {0: batch}, "margins": {0: 2 * batch + 1}},
        output_names=["scores", "doubled"],
    )
