"""Element types of tensors, independent of torch and of any wire protocol."""

from __future__ import annotations

import enum

__all__ = ["ScalarType"]


class ScalarType(enum.Enum):
    """An element type; the value is torch's name for it.

    Member names are those of `slipway.program.v1.ScalarType` in program.proto.
    """

    BOOL = "bool"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    COMPLEX64 = "complex64"
    COMPLEX128 = "complex128"
    FLOAT8_E4M3FN = "float8_e4m3fn"
    FLOAT8_E5M2 = "float8_e5m2"

    @property
    def item_size(self) -> int:
        """Returns the size of one element in bytes."""
        return _ITEM_SIZES[self]


_ITEM_SIZES = {
    ScalarType.BOOL: 1,
    ScalarType.UINT8: 1,
    ScalarType.UINT16: 2,
    ScalarType.UINT32: 4,
    ScalarType.UINT64: 8,
    ScalarType.INT8: 1,
    ScalarType.INT16: 2,
    ScalarType.INT32: 4,
    ScalarType.INT64: 8,
    ScalarType.FLOAT16: 2,
    ScalarType.BFLOAT16: 2,
    ScalarType.FLOAT32: 4,
    ScalarType.FLOAT64: 8,
    ScalarType.COMPLEX64: 8,
    ScalarType.COMPLEX128: 16,
    ScalarType.FLOAT8_E4M3FN: 1,
    ScalarType.FLOAT8_E5M2: 1,
}
