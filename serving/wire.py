"""Messages of ModelInfer as bytes: tensors go past protobuf, which would copy each of them twice.

The elements of tensors are top-level fields of both messages (`raw_input_contents`,
`raw_output_contents`), and protobuf lets fields stand in any order
(https://protobuf.dev/programming-guides/encoding). So a request is cut into its tensors, as views
of the bytes that were received, and a header, which is a ModelInferRequest without them; and a
response is a serialised header with the tensors appended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from slipway.program.words import counted
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import InvalidRequestError

__all__ = [
    "MAX_MESSAGE_SIZE",
    "SplitRequest",
    "join_response",
    "length_delimited",
    "not_a_request",
    "split_request",
]

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5

_REQUEST_ID = protocol.ModelInferRequest.ID_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
_RAW_INPUT = protocol.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
# Tensors, and the parameters of each.
_TENSOR_PARAMETERS = {
    tensors << 3 | _LENGTH_DELIMITED: parameters << 3 | _LENGTH_DELIMITED
    for tensors, parameters in (
        (
            protocol.ModelInferRequest.INPUTS_FIELD_NUMBER,
            protocol.ModelInferRequest.InferInputTensor.PARAMETERS_FIELD_NUMBER,
        ),
        (
            protocol.ModelInferRequest.OUTPUTS_FIELD_NUMBER,
            protocol.ModelInferRequest.InferRequestedOutputTensor.PARAMETERS_FIELD_NUMBER,
        ),
    )
}
_RESPONSE_ID = bytes([protocol.ModelInferResponse.ID_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])
_RAW_OUTPUT = bytes(
    [protocol.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED]
)

MAX_MESSAGE_SIZE = 2**31 - 1
"""Bytes of the largest message that protobuf can hold."""

_MOST_FIELDS = 10_000
"""Fields of a request, of which each tensor, parameter and name is one. Its tensors have no more
parameters together, and three times as many fields."""

SplitRequest = tuple[bytes, bytes, list[memoryview]]
"""The header, a ModelInferRequest without id and tensors; the id; and the tensors' contents."""


def split_request(message: bytes) -> SplitRequest:
    """Cuts a serialised ModelInferRequest into header, id and raw contents.

    The header is not parsed yet; whoever parses it finds what else is wrong with the message.

    Raises:
      InvalidRequestError: the bytes are cut off, or are no protobuf message, or there are more
        fields than any model has tensors.
    """
    view = memoryview(message)
    end = len(message)
    contents: list[memoryview] = []
    header: list[memoryview] = []
    identifier = b""
    position = header_start = fields = 0
    try:
        while position < end:
            start = position
            fields += 1
            if fields > _MOST_FIELDS:
                # Each takes two bytes of the message, and hundreds here.
                raise InvalidRequestError(
                    f"the request has more than {_MOST_FIELDS} inputs, outputs, parameters and raw "
                    "contents"
                )
            tag = message[position]
            position += 1
            if tag & 0x80:
                tag, position = _varint(message, start)
                if position - start > 5:
                    raise IndexError  # more than protobuf reads of a tag
            if tag & 7 == _LENGTH_DELIMITED:
                size = message[position]
                position += 1
                if size & 0x80:
                    size, position = _varint(message, position - 1)
                content = position
                position += size
            else:
                position = content = _skip(message, position, tag & 7)
            if position > end:
                raise IndexError
            if tag in (_RAW_INPUT, _REQUEST_ID):
                if header_start < start:
                    header.append(view[header_start:start])
                header_start = position
                if tag == _RAW_INPUT:
                    contents.append(view[content:position])
                else:
                    identifier = message[content:position]
    except IndexError:
        raise not_a_request(message) from None
    if header_start < end:
        header.append(view[header_start:end])
    whole = b"".join(header)
    if len(whole) > 2 * _MOST_FIELDS:
        try:
            _check_tensors(whole)
        except IndexError:
            raise not_a_request(message) from None
    return whole, identifier, contents


def join_response(header: bytes, identifier: bytes, contents: Iterable[memoryview]) -> bytes:
    """Returns a serialised ModelInferResponse.

    Args:
      header: one without id and raw contents, serialised.
      identifier: of the request, as `split_request` gave it.
      contents: the elements of each output, in the order of the header's outputs.
    """
    parts: list[bytes | memoryview] = [header]
    if identifier:
        parts += (_RESPONSE_ID, _varint_bytes(len(identifier)), identifier)
    for content in contents:
        parts += (_RAW_OUTPUT, _varint_bytes(content.nbytes), content)
    return b"".join(parts)


def length_delimited(field: int, content: bytes) -> bytes:
    """Returns a message, or part of one, whose field number `field` has this content."""
    return b"".join(
        (_varint_bytes(field << 3 | _LENGTH_DELIMITED), _varint_bytes(len(content)), content)
    )


def not_a_request(message: bytes) -> InvalidRequestError:
    """Returns the error for bytes that are no ModelInferRequest."""
    name = protocol.ModelInferRequest.DESCRIPTOR.full_name
    return InvalidRequestError(
        f"the message received, {counted(len(message), 'byte')}, is no {name}"
    )


def _check_tensors(header: bytes) -> None:
    """Raises InvalidRequestError for more fields of tensors than there can be reason for.

    protobuf takes a tenth of a second for the parameters that fit into a megabyte, and holds
    Python's lock meanwhile.
    """
    fields = parameters = 0
    for tag, start, end in _fields(header, 0, len(header)):
        if tag not in _TENSOR_PARAMETERS:
            continue
        for field, _, _ in _fields(header, start, end):
            fields += 1
            parameters += field == _TENSOR_PARAMETERS[tag]
            if parameters > _MOST_FIELDS or fields > 3 * _MOST_FIELDS:
                raise InvalidRequestError(
                    f"the inputs and outputs of the request have more than {_MOST_FIELDS} "
                    f"parameters, or more than {3 * _MOST_FIELDS} fields of any kind"
                )


def _fields(message: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the tag of each field between two positions, and where its content starts and ends."""
    while position < end:
        tag, position = _varint(message, position)
        content = position
        if tag & 7 == _LENGTH_DELIMITED:
            size, content = _varint(message, position)
            position = content + size
        else:
            position = _skip(message, position, tag & 7)
        if position > end:
            raise IndexError
        yield tag, content, position


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """Returns the number at `position`, and where what follows it starts."""
    value = shift = 0
    while True:
        octet = message[position]
        position += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError


def _varint_bytes(value: int) -> bytes:
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def _skip(message: bytes, position: int, wire_type: int) -> int:
    if wire_type == _VARINT:
        return _varint(message, position)[1]
    if wire_type == _FIXED64:
        return position + 8
    if wire_type == _FIXED32:
        return position + 4
    raise IndexError  # groups, which proto3 does not have, and what is no wire type
