"""Scalar types as torch's dtypes, and back."""

from __future__ import annotations

import torch

from slipway.program.scalar_types import ScalarType

__all__ = ["from_torch", "is_fresh", "to_torch"]

_TO_TORCH: dict[ScalarType, torch.dtype] = {
    scalar_type: getattr(torch, scalar_type.value) for scalar_type in ScalarType
}
_FROM_TORCH = {dtype: scalar_type for scalar_type, dtype in _TO_TORCH.items()}


def to_torch(scalar_type: ScalarType) -> torch.dtype:
    """Returns torch's dtype for a scalar type."""
    return _TO_TORCH[scalar_type]


def from_torch(dtype: torch.dtype) -> ScalarType:
    """Returns the scalar type of a torch dtype.

    Raises:
      ValueError: the format has none for it (a quantised dtype, say).
    """
    try:
        return _FROM_TORCH[dtype]
    except KeyError:
        supported = ", ".join(item.value for item in ScalarType)
        raise ValueError(f"{dtype} is not supported; supported are {supported}") from None


def is_fresh(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor lies in memory as a newly made one of its shape does."""
    if tensor.layout is not torch.strided or tensor.storage_offset():
        return False
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if stride != step:
            return False
        step *= max(size, 1)
    return True
