"""Export: from a function or a torch.nn.Module to a program with its contract.

`Dim` is torch's own, so that dynamic dimensions are written as PyTorch users write them.
"""

from __future__ import annotations

from torch.export import Dim

from slipway.export.api import export, export_spec
from slipway.export.data import data_path
from slipway.export.errors import ExportError, ExportErrorKind, SourceLine
from slipway.export.from_torch import from_exported_program, from_pt2
from slipway.export.spec import ExportSpec, MethodSpec
from slipway.export.to_torch import to_exported_program
from slipway.export.weights import load_weights

__all__ = [
    "Dim",
    "ExportError",
    "ExportErrorKind",
    "ExportSpec",
    "MethodSpec",
    "SourceLine",
    "data_path",
    "export",
    "export_spec",
    "from_exported_program",
    "from_pt2",
    "load_weights",
    "to_exported_program",
]
