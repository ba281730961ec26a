"""A model that is never exported: the rules that name it are analysed only."""

from __future__ import annotations

import torch

from slipway.export import ExportSpec


def export_spec() -> ExportSpec:
    return ExportSpec(model=torch.nn.ReLU(), args=torch.ones(3))
