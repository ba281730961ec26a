"""The wire codec: tensors as ModelInfer carries them, to torch and back.

Decoding takes three steps, and the contract is checked after the first:

  1. `read_headers` takes names, datatypes and shapes: integers and text, no tensor.
  2. `check_contents` and `read_typed_contents` see that each tensor's bytes are as many as its
     shape takes. So what a request can make the server allocate is bounded by what it sent.
  3. `make_tensor` and `make_batch` make tensors, when the request's turn to run has come.

Elements are little-endian and row-major, without padding, as they are in memory on every host that
torch runs on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from slipway.program.scalar_types import ScalarType
from slipway.program.words import counted
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.datatypes import DATATYPES, Datatype
from slipway.serving.errors import (
    FieldViolation,
    InvalidRequestError,
    quoted,
)

__all__ = [
    "TensorHeader",
    "check_contents",
    "elements_problem",
    "make_batch",
    "make_tensor",
    "read_headers",
    "read_typed_contents",
    "size_problem",
    "tensor_contents",
]

_MAX_SIZE = 2**63 - 1
"""What the sizes of a tensor's dimensions, and its bytes, must not exceed when multiplied."""

_MAX_RANK = 64
"""Dimensions of a tensor that torch can compute with."""

_FEW_BYTES = 4096
"""Up to which Python looks at booleans itself."""

_VIEWABLE = frozenset({torch.float32, torch.float64, torch.int32, torch.int64})
"""The usual dtypes of outputs among those that Python's own buffers know."""

_CONTENTS_FIELDS = tuple(field.name for field in protocol.InferTensorContents.DESCRIPTOR.fields)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a request says of an input: everything but the elements.

    Attributes:
      name: the input's name.
      position: the input's index in the request.
      datatype: of its elements.
      shape: the size of each dimension; none is negative.
      count: the number of elements.
      size: of the elements, in bytes.
    """

    name: str
    position: int
    datatype: Datatype
    shape: tuple[int, ...]
    count: int = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", math.prod(self.shape))
        object.__setattr__(self, "size", self.count * self.datatype.item_size)

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
    """
    headers: dict[str, TensorHeader] = {}
    problems: list[FieldViolation] = []
    for position, item in enumerate(request.inputs):
        where = f"inputs[{item.name}]"
        if item.name in headers:
            problems.append(
                FieldViolation(
                    where, f"input {quoted(item.name)} already exists in request", "DUPLICATE_INPUT"
                )
            )
            continue
        datatype = DATATYPES.get(item.datatype)
        problem = _datatype_problem(item.name, item.datatype) if datatype is None else None
        if problem is not None:
            problems.append(FieldViolation(f"{where}.datatype", problem, "DATATYPE"))
        problem = _shape_problem(
            item.name, item.shape, 1 if datatype is None else datatype.item_size
        )
        if problem is not None:
            problems.append(FieldViolation(f"{where}.shape", problem, "SHAPE"))
        # An input with problems is kept too, so that its duplicate is found. Its sizes are not: to
        # multiply them could take for ever.
        shape = () if problem is not None else tuple(item.shape)
        headers[item.name] = TensorHeader(
            item.name, position, datatype or DATATYPES["UINT8"], shape
        )
    if problems:
        raise InvalidRequestError.of(subject, problems)
    return headers


def check_contents(
    subject: str,
    headers: Sequence[TensorHeader],
    contents: Sequence[memoryview],
    positions: Sequence[int],
) -> None:
    """Checks raw contents against the headers they belong to.

    Args:
      subject: the model and version, for messages.
      headers: of inputs, found legal by the contract.
      contents: the elements of each.
      positions: the index of each in raw_input_contents.

    Raises:
      InvalidRequestError: naming every input whose contents do not fit its header.
    """
    problems: list[FieldViolation] = []
    for header, content, position in zip(headers, contents, positions, strict=True):
        if content.nbytes != header.size:
            problem: str | None = size_problem(header, content.nbytes)
        elif header.datatype.dtype is torch.bool:
            problem = elements_problem(header, content)
        else:
            continue
        if problem is not None:
            problems.append(FieldViolation(f"raw_input_contents[{position}]", problem, "CONTENTS"))
    if problems:
        raise InvalidRequestError.of(subject, problems)


def size_problem(header: TensorHeader, size: int) -> str | None:
    """Returns why an input cannot have `size` bytes, or None."""
    if size == header.size:
        return None
    return (
        f"input byte size mismatch for input {quoted(header.name)}: "
        f"{header} takes {header.size} bytes, got {size}"
    )


def elements_problem(header: TensorHeader, content: memoryview) -> str | None:
    """Returns why bytes, as many as an input takes, are no elements of its datatype, or None."""
    if header.datatype.dtype is not torch.bool or _are_booleans(content):
        return None
    octets = np.frombuffer(content, np.uint8)
    position = int(np.argmax(octets > 1))
    return (
        f"input {quoted(header.name)} has datatype BOOL, whose elements are the bytes 0 and 1; "
        f"element {position} is {octets[position]}"
    )


def read_typed_contents(
    subject: str, request: protocol.ModelInferRequest, headers: Sequence[TensorHeader]
) -> list[memoryview]:
    """Returns the elements of inputs that are sent as numbers rather than as bytes.

    Args:
      subject: the model and version, for messages.
      request: has no raw contents.
      headers: of its inputs, found legal by the contract.

    Raises:
      InvalidRequestError: naming every input whose contents do not fit its header.
    """
    contents: list[memoryview] = []
    problems: list[FieldViolation] = []
    for header in headers:
        try:
            contents.append(_typed_contents(header, request.inputs[header.position]))
        except _ContentsError as error:
            where = f"inputs[{header.name}].contents"
            problems.append(FieldViolation(where, str(error), "CONTENTS"))
    if problems:
        raise InvalidRequestError.of(subject, problems)
    return contents


def make_tensor(header: TensorHeader, content: memoryview) -> torch.Tensor:
    """Returns an input as a tensor on the host, which owns its memory.

    Copied rather than aliased: a model may write to its inputs, and received bytes are not aligned.
    A bytearray is a copy already, for this tensor alone, of what lies in shared memory.
    """
    memory = content.obj if isinstance(content.obj, bytearray) else bytearray(content)
    return _tensor(memory, header.datatype, header.shape)


def make_batch(
    headers: Sequence[TensorHeader],
    contents: Sequence[memoryview],
    axis: int,
    shape: tuple[int, ...],
    values: Mapping[int, float],
) -> torch.Tensor:
    """Returns the same input of several requests as one tensor, concatenated along `axis`.

    Args:
      headers: of the input in each request.
      contents: the elements of each.
      axis: the dimension that the requests' sizes add up in.
      shape: of the whole. In its other dimensions it may be larger than an input, which is then
        padded at the end.
      values: what to pad with along each dimension that can be, one after the other.
    """
    first = headers[0]
    if not axis and all(header.shape[1:] == shape[1:] for header in headers):
        return _tensor(bytearray().join(contents), first.datatype, shape)
    if not axis and all(header.shape[2:] == shape[2:] for header in headers):
        # Each row is a run of bytes, and what it lacks another.
        pieces: list[bytes | memoryview] = []
        length = math.prod(shape[1:]) * first.datatype.item_size
        filling = _element(values[1], first.datatype) * shape[1] * math.prod(shape[2:])
        for header, content in zip(headers, contents, strict=True):
            row = math.prod(header.shape[1:]) * first.datatype.item_size
            for place in range(header.shape[0]):
                pieces += (content[place * row : (place + 1) * row], filling[: length - row])
        return _tensor(bytearray().join(pieces), first.datatype, shape)
    whole = torch.empty(shape, dtype=first.datatype.dtype)
    start = 0
    for header, content in zip(headers, contents, strict=True):
        part = whole.narrow(axis, start, header.shape[axis])
        for dimension, value in values.items():
            size = header.shape[dimension]
            part.narrow(dimension, size, shape[dimension] - size).fill_(value)
        for dimension, size in enumerate(header.shape):
            part = part.narrow(dimension, 0, size)
        part.copy_(make_tensor(header, content))
        start += header.shape[axis]
    return whole


@functools.lru_cache(64)
def _element(value: float, datatype: Datatype) -> bytes:
    element = torch.full((1,), value, dtype=datatype.dtype)
    return bytes(tensor_contents(element))


def tensor_contents(tensor: torch.Tensor) -> memoryview:
    """Returns the elements of `tensor`, from whatever device and layout, as raw contents."""
    if not tensor.numel():
        return memoryview(b"")  # the strides of an empty tensor may forbid what follows
    if (
        tensor.dtype in _VIEWABLE
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not tensor.is_neg()  # as imaginary parts of conjugates are: of another sign in memory
    ):
        return tensor.detach().numpy().data.cast("B")
    whole = tensor.detach().resolve_neg().to("cpu").contiguous()
    # A dimension of one element may have any stride, and a view as bytes needs 1.
    flat = whole.as_strided((whole.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


def _are_booleans(content: memoryview) -> bool:
    if content.nbytes <= _FEW_BYTES:
        # Less code than numpy runs for it, all of which models push out of the caches.
        return not bytes(content).translate(None, b"\0\1")
    return bool(np.frombuffer(content, np.uint8).max() <= 1)


def _tensor(memory: bytearray, datatype: Datatype, shape: tuple[int, ...]) -> torch.Tensor:
    if not memory:
        return torch.empty(shape, dtype=datatype.dtype)
    return torch.frombuffer(memory, dtype=datatype.dtype).reshape(shape)


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


def _shape_problem(name: str, shape: Sequence[int], item_size: int) -> str | None:
    """Returns what is wrong with `shape` whatever the contract says, or None."""
    if len(shape) > _MAX_RANK:
        return (
            f"input {quoted(name)} has {len(shape)} dimensions; no tensor here has more than "
            f"{_MAX_RANK}"
        )
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


def _shape_text(shape: Sequence[int]) -> str:
    if len(shape) > 16:
        return f"[{', '.join(map(str, shape[:16]))}, ... {len(shape)} dimensions]"
    return str(list(shape))


def _typed_contents(
    header: TensorHeader, item: protocol.ModelInferRequest.InferInputTensor
) -> memoryview:
    name = header.name
    expected = header.datatype.contents_field
    for name_of_field in _CONTENTS_FIELDS:
        count = len(getattr(item.contents, name_of_field))
        if count and name_of_field != expected:
            where = "go only in raw_input_contents" if expected is None else f"go in {expected}"
            raise _ContentsError(
                f"input {quoted(name)} has datatype {header.datatype.name}, whose elements "
                f"{where}; {name_of_field} holds {count}"
            )
    if expected is None:
        if header.count:
            raise _ContentsError(
                f"unable to find data for input tensor {quoted(name)}: elements of datatype "
                f"{header.datatype.name} go only in raw_input_contents, which is empty"
            )
        return memoryview(b"")
    values = getattr(item.contents, expected)
    if len(values) != header.count:
        if not values:
            raise _ContentsError(
                f"unable to find data for input tensor {quoted(name)}: {header} takes "
                f"{counted(header.count, 'element')}, and both raw_input_contents and {expected} "
                "are empty"
            )
        raise _ContentsError(
            f"input element count mismatch for input {quoted(name)}: "
            f"{header} takes {counted(header.count, 'element')}, {expected} holds {len(values)}"
        )
    return _narrowed(name, header, values).data.cast("B")


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
