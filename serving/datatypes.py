"""The protocol's datatypes, and what they are called elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slipway.program.scalar_types import ScalarType
from slipway.proto import open_inference_pb2 as protocol

__all__ = ["DATATYPES", "Datatype", "datatype_of"]


@dataclass(frozen=True, slots=True)
class Datatype:
    """An element type as each layer knows it.

    Attributes:
      name: in requests, responses and metadata.
      scalar_type: in contracts.
      dtype: in torch.
      config: in ModelConfig.
      contents_field: the field of InferTensorContents for typed elements; None where the protocol
        has none, so that elements can only be sent as raw bytes.
    """

    name: str
    scalar_type: ScalarType
    dtype: torch.dtype
    config: protocol.DataType
    contents_field: str | None

    @property
    def item_size(self) -> int:
        """Returns the size of one element in bytes."""
        return self.scalar_type.item_size


_ALL = (
    Datatype("BOOL", ScalarType.BOOL, torch.bool, protocol.TYPE_BOOL, "bool_contents"),
    Datatype("UINT8", ScalarType.UINT8, torch.uint8, protocol.TYPE_UINT8, "uint_contents"),
    Datatype("UINT16", ScalarType.UINT16, torch.uint16, protocol.TYPE_UINT16, "uint_contents"),
    Datatype("UINT32", ScalarType.UINT32, torch.uint32, protocol.TYPE_UINT32, "uint_contents"),
    Datatype("UINT64", ScalarType.UINT64, torch.uint64, protocol.TYPE_UINT64, "uint64_contents"),
    Datatype("INT8", ScalarType.INT8, torch.int8, protocol.TYPE_INT8, "int_contents"),
    Datatype("INT16", ScalarType.INT16, torch.int16, protocol.TYPE_INT16, "int_contents"),
    Datatype("INT32", ScalarType.INT32, torch.int32, protocol.TYPE_INT32, "int_contents"),
    Datatype("INT64", ScalarType.INT64, torch.int64, protocol.TYPE_INT64, "int64_contents"),
    Datatype("FP16", ScalarType.FLOAT16, torch.float16, protocol.TYPE_FP16, None),
    Datatype("FP32", ScalarType.FLOAT32, torch.float32, protocol.TYPE_FP32, "fp32_contents"),
    Datatype("FP64", ScalarType.FLOAT64, torch.float64, protocol.TYPE_FP64, "fp64_contents"),
    Datatype("BF16", ScalarType.BFLOAT16, torch.bfloat16, protocol.TYPE_BF16, None),
)

DATATYPES = {datatype.name: datatype for datatype in _ALL}
"""The datatypes that tensors can have, by the protocol's name. BYTES is not among them."""

_BY_SCALAR_TYPE = {datatype.scalar_type: datatype for datatype in _ALL}


def datatype_of(scalar_type: ScalarType) -> Datatype | None:
    """Returns the datatype of a contract's `scalar_type`; None if the protocol has none for it."""
    return _BY_SCALAR_TYPE.get(scalar_type)
