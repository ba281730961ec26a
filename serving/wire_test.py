from __future__ import annotations

import hypothesis.strategies as st
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import InvalidRequestError
from slipway.serving.wire import join_response, length_delimited, split_request

Request = protocol.ModelInferRequest
NAMES = st.text(max_size=6)
SIZES = st.sampled_from([0, 1, 127, 128, 300, 16384])


@st.composite
def requests(draw: st.DrawFn) -> protocol.ModelInferRequest:
    request = Request(model_name=draw(NAMES), model_version=draw(NAMES), id=draw(NAMES))
    for name in draw(st.lists(NAMES, max_size=2)):
        request.parameters[name].int64_param = draw(st.integers(-(2**63), 2**63 - 1))
    for _ in range(draw(st.integers(0, 3))):
        item = request.inputs.add(name=draw(NAMES), datatype=draw(NAMES))
        item.shape.extend(draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)))
        item.contents.fp32_contents.extend(draw(st.lists(st.just(1.5), max_size=3)))
    for name in draw(st.lists(NAMES, max_size=2)):
        request.outputs.add(name=name)
    for size in draw(st.lists(SIZES, max_size=3)):
        request.raw_input_contents.append(draw(st.binary(min_size=1, max_size=4)) * size)
    return request


def varint(value: int) -> bytes:
    octets = []
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])


@st.composite
def unknown_fields(draw: st.DrawFn) -> bytes:
    number = draw(st.integers(8, 2**29 - 1))
    kind = draw(st.sampled_from([0, 1, 2, 5]))
    tag = varint(number << 3 | kind)
    content = draw(st.binary(min_size=8, max_size=8))
    return (
        tag
        + {
            0: varint(draw(st.integers(0, 2**64 - 1))),
            1: content,
            2: b"\x08" + content,
            5: content[:4],
        }[kind]
    )


def fields_of(request: protocol.ModelInferRequest) -> list[bytes]:
    """Returns each field of the request, and each entry of those that are repeated, serialised."""
    fields = []
    for field, value in request.ListFields():
        for entry in value if field.is_repeated and field.name != "parameters" else [value]:
            part = Request()
            if field.name == "parameters":
                part.parameters.MergeFrom(request.parameters)
            elif field.is_repeated and field.message_type is not None:
                getattr(part, field.name).add().CopyFrom(entry)
            elif field.is_repeated:
                getattr(part, field.name).append(entry)
            else:
                setattr(part, field.name, entry)
            fields.append(part.SerializeToString())
    return fields


def rejoined(message: bytes) -> protocol.ModelInferRequest:
    header, identifier, contents = split_request(message)
    request = Request.FromString(header)
    assert not request.id
    assert not request.raw_input_contents
    request.id = identifier.decode()
    request.raw_input_contents.extend(content.tobytes() for content in contents)
    return request


@given(data=st.data())
def test_a_split_request_is_what_protobuf_reads(data: st.DataObject) -> None:
    fields = fields_of(data.draw(requests())) + data.draw(st.lists(unknown_fields(), max_size=3))
    message = b"".join(data.draw(st.permutations(fields)))
    mine, theirs = rejoined(message), Request.FromString(message)
    assert mine.SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )


@given(request=requests(), data=st.data())
def test_a_message_that_is_cut_off_is_refused_as_protobuf_does(
    request: protocol.ModelInferRequest, data: st.DataObject
) -> None:
    message = request.SerializeToString()
    message = message[: data.draw(st.integers(0, len(message)))]
    check_verdict(message)


@given(message=st.binary(max_size=40))
def test_arbitrary_bytes_get_the_verdict_of_protobuf_or_a_stricter_one(message: bytes) -> None:
    check_verdict(message)


@given(request=requests(), data=st.data())
def test_a_message_with_wrong_bytes_gets_the_verdict_of_protobuf_or_a_stricter_one(
    request: protocol.ModelInferRequest, data: st.DataObject
) -> None:
    message = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3)) if message else 0):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    check_verdict(bytes(message))


def check_verdict(message: bytes) -> None:
    try:
        mine = rejoined(message)
    except (InvalidRequestError, DecodeError, UnicodeDecodeError):
        return
    theirs = Request.FromString(message)
    assert mine.SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )


def test_tensors_are_views_of_the_message() -> None:
    message = Request(raw_input_contents=[b"abc" * 100]).SerializeToString()
    (content,) = split_request(message)[2]
    assert content.obj is message


@pytest.mark.parametrize(
    "message",
    [
        b"\x3a",
        b"\x3a\x05ab",
        b"\x3a" + b"\xff" * 11,
        b"\x3a" + b"\x80" * 10 + b"\0",
        b"\x0b\x0c",
        b"\x0f",
        b"\xba" + b"\x80" * 5,
        b"\xba" + b"\x80" * 4 + b"\0\0",
    ],
    ids=[
        "no size",
        "cut off",
        "endless size",
        "size of eleven bytes",
        "group",
        "no wire type",
        "endless tag",
        "tag of six bytes",
    ],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(InvalidRequestError, match=r"bytes?, is no inference.ModelInfer"):
        split_request(message)


@given(
    name=NAMES,
    identifier=NAMES,
    contents=st.lists(st.tuples(st.binary(max_size=3), SIZES), max_size=3),
)
def test_a_joined_response_is_what_it_was_made_of(
    name: str, identifier: str, contents: list[tuple[bytes, int]]
) -> None:
    response = protocol.ModelInferResponse(model_name=name)
    response.outputs.add(name=name, datatype="FP32", shape=[1, 2])
    header = response.SerializeToString()
    values = [content * size for content, size in contents]
    message = join_response(header, identifier.encode(), map(memoryview, values))
    response.id = identifier
    response.raw_output_contents.extend(values)
    assert protocol.ModelInferResponse.FromString(message) == response


@given(text=NAMES, size=SIZES)
def test_a_length_delimited_field_is_read_by_protobuf(text: str, size: int) -> None:
    number = Request.MODEL_NAME_FIELD_NUMBER
    message = length_delimited(number, text.encode() * size)
    assert Request.FromString(message) == Request(model_name=text * size)


@pytest.mark.parametrize("field", [b"\x2a\x00", b"\x3a\x00", b"\x32\x00", b"\x0a\x00"])
def test_no_more_fields_than_any_model_has_tensors(field: bytes) -> None:
    split_request(field * 10_000)
    with pytest.raises(InvalidRequestError, match="more than 10000 inputs, outputs"):
        split_request(field * 10_001)


@pytest.mark.parametrize(
    ("tag", "field", "most"),
    [
        (b"\x2a", b"\x22\x00", 10_000),
        (b"\x32", b"\x12\x00", 10_000),
        (b"\x2a", b"\x0a\x00", 30_000),
        (b"\x32", b"\x22\x00", 30_000),
    ],
    ids=["parameters of inputs", "parameters of outputs", "names", "unknown fields"],
)
def test_no_more_fields_of_tensors_than_there_can_be_reason_for(
    tag: bytes, field: bytes, most: int
) -> None:
    def tensor(fields: int) -> bytes:
        size = 2 * fields
        encoded = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
        return tag + encoded + field * fields

    split_request(tensor(most // 2) * 2)
    with pytest.raises(InvalidRequestError, match="outputs of the request have more than 10000 pa"):
        split_request(tensor(most // 2) + tensor(most // 2 + 1))


def test_a_tensor_with_many_elements_is_no_tensor_with_many_fields() -> None:
    request = Request()
    item = request.inputs.add(name="x", datatype="FP32", shape=[100_000])
    item.contents.fp32_contents.extend([1.5] * 100_000)
    assert rejoined(request.SerializeToString()) == request


@pytest.mark.parametrize(
    "damage", [b"\x22", b"\x22\x05ab", b"\x23", b"\x22" + b"\xff" * 11], ids=str
)
def test_a_large_tensor_that_is_no_message_is_refused(damage: bytes) -> None:
    content = b"\x0a\xe0\xd4\x03" + b"x" * 60_000 + damage
    message = b"\x2a" + bytes([len(content) & 0x7F | 0x80, len(content) >> 7 & 0x7F | 0x80])
    message += bytes([len(content) >> 14]) + content
    with pytest.raises(InvalidRequestError, match=f"{len(message)} bytes, is no"):
        split_request(message)
