"""Writes the archive that the targets here make programs of: `save.py OUT.pt2`."""

from __future__ import annotations

import sys

import torch
from torch.export import Dim

from slipway.tests.custom_ops import doubling


class Ranker(torch.nn.Module):
    """Calls an operator of a user's library."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(4, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = doubling.twice(self.head(features))
        return result


def main(path: str) -> None:
    torch.manual_seed(0)
    batch = Dim("batch", min=2, max=64)
    exported = torch.export.export(
        Ranker().eval(), (torch.randn(3, 4),), dynamic_shapes={"features": {0: batch}}
    )
    torch.export.save(exported, path)


if __name__ == "__main__":
    main(sys.argv[1])
