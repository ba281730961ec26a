"""Products of int8 matrices, which oneDNN gets wrong where it may not use the newest instructions.

Export actions keep it from all that not every machine has, for the sake of the same bytes. Without
VNNI it adds pairs of products in 16 bits, where they do not fit: the results of a quantized model
were not those of any server.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

__all__ = ["multiply_integers_exactly"]

_LIBRARY: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
"""Overrides end with it."""


def multiply_integers_exactly() -> None:
    """Has this process multiply int8 matrices without oneDNN."""
    with warnings.catch_warnings(action="ignore"):
        _LIBRARY.impl("_int_mm", _int_mm, "CPU", allow_override=True)


def _int_mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    result = left.new_empty((left.shape[0], right.shape[1]), dtype=torch.int32)
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        return torch.ops.aten._int_mm.out(left, right, out=result)  # type: ignore[no-any-return]
    finally:
        torch._C._set_mkldnn_enabled(enabled)
