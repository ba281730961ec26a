"""The wire codec: tensors as ModelInfer carries them, to torch and back.

Decoding takes two steps, and the contract is checked between them:

  1. `read_headers` takes names, datatypes and shapes: integers and text, no tensor.
  2. `decode_inputs` makes tensors, once the shapes are known to be legal and each one's bytes are
     known to be as many as its shape takes. So what a request can make the server allocate is
     bounded by what it sent.

Elements are little-endian and row-major, without padding, as they are in memory on every host that
torch runs on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from slipway.program.scalar_types import ScalarType
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.datatypes import DATATYPES, Datatype
from slipway.serving.errors import (
    FieldViolation,
    InvalidRequestError,
    UnsupportedError,
    quoted,
)

__all__ = ["TensorHeader", "decode_inputs", "encode_tensor", "read_headers"]

_MAX_SIZE = 2**63 - 1
"""What the sizes of a tensor's dimensions, and its bytes, must not exceed when multiplied."""

_CONTENTS_FIELDS = tuple(field.name for field in protocol.InferTensorContents.DESCRIPTOR.fields)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a request says of an input: everything but the elements.

    Attributes:
      position: the input's index in the request.
      datatype: of its elements.
      shape: the size of each dimension; none is negative.
    """

    position: int
    datatype: Datatype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Returns the number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Returns the size of the elements in bytes."""
        return self.count * self.datatype.item_size

    @property
    def signature(self) -> tuple[ScalarType, tuple[int, ...]]:
        """Returns what a contract checks."""
        return self.datatype.scalar_type, self.shape

    def __str__(self) -> str:
        return f"shape {_shape_text(self.shape)} of {self.datatype.name}"


def read_headers(subject: str, request: protocol.ModelInferRequest) -> dict[str, TensorHeader]:
    """Returns the header of each input of `request`, by name, in the request's order.

    Args:
      subject: the model and version, for messages.
      request: the request; its contents are not looked at.

    Raises:
      InvalidRequestError: naming every duplicate, unknown datatype and impossible shape.
      UnsupportedError: an input lies in shared memory.
    """
    headers: dict[str, TensorHeader] = {}
    problems: list[FieldViolation] = []
    for position, item in enumerate(request.inputs):
        for parameter in item.parameters:
            if parameter.startswith("shared_memory_"):
                raise UnsupportedError(
                    f"Client shared memory is disabled: input {quoted(item.name)} has the "
                    f"parameter {quoted(parameter)}, and this server takes tensors only in requests"
                )
        where = f"inputs[{item.name}]"
        if item.name in headers:
            problems.append(
                FieldViolation(
                    where, f"input {quoted(item.name)} already exists in request", "DUPLICATE_INPUT"
                )
            )
            continue
        datatype = DATATYPES.get(item.datatype)
        shape = tuple(item.shape)
        problem = _datatype_problem(item.name, item.datatype) if datatype is None else None
        if problem is not None:
            problems.append(FieldViolation(f"{where}.datatype", problem, "DATATYPE"))
        problem = _shape_problem(item.name, shape, 1 if datatype is None else datatype.item_size)
        if problem is not None:
            problems.append(FieldViolation(f"{where}.shape", problem, "SHAPE"))
        # An input with problems is kept too, so that its duplicate is found.
        headers[item.name] = TensorHeader(position, datatype or DATATYPES["UINT8"], shape)
    if problems:
        raise InvalidRequestError.of(subject, problems)
    return headers


def decode_inputs(
    subject: str,
    request: protocol.ModelInferRequest,
    headers: dict[str, TensorHeader],
    names: Iterable[str],
) -> list[torch.Tensor]:
    """Returns the inputs `names` of `request` as tensors on the host, in the order of `names`.

    The tensors own their memory: a model that writes to its inputs changes nothing else.

    Args:
      subject: the model and version, for messages.
      request: the request.
      headers: what `read_headers` gave for it, found legal by the contract.
      names: inputs that are in `headers`.

    Raises:
      InvalidRequestError: naming every input whose contents do not fit its header.
    """
    problems: list[FieldViolation] = []
    entries = len(request.raw_input_contents)
    if entries not in (0, len(request.inputs)):
        problem = (
            f"raw_input_contents has {entries} entries for {len(request.inputs)} inputs; "
            "it must have one for each input, in the order of the inputs"
        )
        violation = FieldViolation("raw_input_contents", problem, "RAW_CONTENTS")
        raise InvalidRequestError.of(subject, [violation])
    tensors: list[torch.Tensor] = []
    for name in names:
        header = headers[name]
        item = request.inputs[header.position]
        try:
            if entries:
                if item.HasField("contents"):
                    raise _ContentsError(
                        "contents field must not be specified when using raw_input_contents for "
                        f"{quoted(name)}: send every input raw, or every input typed"
                    )
                raw = request.raw_input_contents[header.position]
                tensors.append(_decode_raw(name, header, raw))
            else:
                tensors.append(_decode_typed(name, header, item))
        except _ContentsError as error:
            field = f"inputs[{name}].contents"
            if entries and not item.HasField("contents"):
                field = f"raw_input_contents[{header.position}]"
            problems.append(FieldViolation(field, str(error), "CONTENTS"))
    if problems:
        raise InvalidRequestError.of(subject, problems)
    return tensors


def encode_tensor(tensor: torch.Tensor) -> bytes:
    """Returns the elements of `tensor`, from whatever device and layout, as raw contents."""
    if not tensor.numel():
        return b""  # the strides of an empty tensor may forbid what follows
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


class _ContentsError(Exception):
    """The contents of one input do not fit its header."""


def _datatype_problem(name: str, datatype: str) -> str:
    if datatype == "BYTES":
        return (
            f"input {quoted(name)} has datatype BYTES, which is not supported: "
            f"models here take tensors of {', '.join(DATATYPES)}"
        )
    return (
        f"input {quoted(name)} has datatype {quoted(datatype)}, which the protocol does not have "
        f"for tensors; it must be one of {', '.join(DATATYPES)}"
    )


def _shape_problem(name: str, shape: tuple[int, ...], item_size: int) -> str | None:
    """Returns what is wrong with `shape` whatever the contract says, or None."""
    total = item_size
    for dimension, size in enumerate(shape):
        if size < 0:
            return (
                f"All input dimensions should be specified for input {quoted(name)}: "
                f"dimension {dimension} of shape {_shape_text(shape)} is {size}; "
                "a request gives every size as a number that is not negative"
            )
        # Zeros are left out: a tensor of (0, 2**62, 2**62) has no elements, and no legal strides.
        total *= max(size, 1)
        if total > _MAX_SIZE:
            return (
                f"byte size for input {quoted(name)} exceeds maximum size of {_MAX_SIZE}: "
                f"its shape is {_shape_text(shape)}, with {item_size} bytes an element"
            )
    return None


def _shape_text(shape: tuple[int, ...]) -> str:
    if len(shape) > 16:
        return f"[{', '.join(map(str, shape[:16]))}, ... {len(shape)} dimensions]"
    return str(list(shape))


def _decode_raw(name: str, header: TensorHeader, raw: bytes) -> torch.Tensor:
    if len(raw) != header.size:
        raise _ContentsError(
            f"input byte size mismatch for input {quoted(name)}: "
            f"{header} takes {header.size} bytes, got {len(raw)}"
        )
    tensor = torch.empty(header.shape, dtype=header.datatype.dtype)
    if not raw:
        return tensor
    # Copied rather than aliased: bytes must not be written to, and are not aligned for vectors.
    octets = np.frombuffer(raw, np.uint8)
    if header.datatype.dtype is torch.bool and octets.max() > 1:
        position = int(np.argmax(octets > 1))
        raise _ContentsError(
            f"input {quoted(name)} has datatype BOOL, whose elements are the bytes 0 and 1; "
            f"element {position} is {octets[position]}"
        )
    tensor.reshape(-1).view(torch.uint8).numpy()[:] = octets
    return tensor


def _decode_typed(
    name: str, header: TensorHeader, item: protocol.ModelInferRequest.InferInputTensor
) -> torch.Tensor:
    expected = header.datatype.contents_field
    for field in _CONTENTS_FIELDS:
        count = len(getattr(item.contents, field))
        if count and field != expected:
            where = "go only in raw_input_contents" if expected is None else f"go in {expected}"
            raise _ContentsError(
                f"input {quoted(name)} has datatype {header.datatype.name}, whose elements "
                f"{where}; {field} holds {count}"
            )
    if expected is None:
        if header.count:
            raise _ContentsError(
                f"unable to find data for input tensor {quoted(name)}: elements of datatype "
                f"{header.datatype.name} go only in raw_input_contents, which is empty"
            )
        return torch.empty(header.shape, dtype=header.datatype.dtype)
    values = getattr(item.contents, expected)
    if len(values) != header.count:
        if not values:
            raise _ContentsError(
                f"unable to find data for input tensor {quoted(name)}: {header} takes "
                f"{header.count} elements, and both raw_input_contents and {expected} are empty"
            )
        raise _ContentsError(
            f"input element count mismatch for input {quoted(name)}: "
            f"{header} takes {header.count} elements, {expected} holds {len(values)}"
        )
    return torch.from_numpy(_narrowed(name, header, values)).reshape(header.shape)


def _narrowed(name: str, header: TensorHeader, values: Iterable[float]) -> np.ndarray:
    """Returns `values`, from a field that may be wider than the datatype, as the datatype."""
    dtype = np.dtype(header.datatype.scalar_type.value)
    if dtype.kind not in "iu" or dtype.itemsize == 8:
        return np.fromiter(values, dtype, count=header.count)
    wide = np.fromiter(values, np.int64, count=header.count)
    limits = np.iinfo(dtype)
    outside = (wide < limits.min) | (wide > limits.max)
    if outside.any():
        position = int(np.argmax(outside))
        raise _ContentsError(
            f"input {quoted(name)} has datatype {header.datatype.name}, whose elements are "
            f"{limits.min} to {limits.max}; element {position} is {wide[position]}"
        )
    return wide.astype(dtype)
