"""Export: from a function or a torch.nn.Module to a program with its contract.

`Dim` is torch's own, so that dynamic dimensions are written as PyTorch users write them.
"""

from __future__ import annotations

from torch.export import Dim

from slipway.export.api import export, export_spec
from slipway.export.errors import ExportError, ExportErrorKind, SourceLine
from slipway.export.spec import ExportSpec, MethodSpec

__all__ = [
    "Dim",
    "ExportError",
    "ExportErrorKind",
    "ExportSpec",
    "MethodSpec",
    "SourceLine",
    "export",
    "export_spec",
]
