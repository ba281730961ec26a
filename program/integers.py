"""Products of int8 matrices, which oneDNN gets wrong where it has none of the newest instructions.

Without VNNI it adds pairs of products in 16 bits, where they do not fit. So do processors of some
years ago, and export actions, which keep it from all that not every machine has, for the sake of
the same bytes.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

import torch

__all__ = ["multiply_integers_exactly"]

_LIBRARY: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
"""Overrides end with it."""

_LOCK = threading.Lock()


def multiply_integers_exactly() -> None:
    """Has this process multiply int8 matrices without oneDNN, if that gets them wrong here."""
    with _LOCK:
        if _is_exact():
            return
        with warnings.catch_warnings(action="ignore"):
            for name, kernel in {"_int_mm": _int_mm, "_int_mm.out": _int_mm_out}.items():
                _LIBRARY.impl(name, kernel, "CPU", allow_override=True)


def _is_exact() -> bool:
    largest = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.t()) == 127 * 127 * 64).all())


def _int_mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    # Float64 holds every such sum exactly, and BLAS has it for every processor. What int32 does not
    # hold wraps around on the way by int64.
    return torch.mm(left.double(), right.double()).long().int()


def _int_mm_out(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    return out.resize_(left.shape[0], right.shape[1]).copy_(_int_mm(left, right))
