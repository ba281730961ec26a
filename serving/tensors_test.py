from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.datatypes import DATATYPES, Datatype, datatype_of
from slipway.serving.errors import InvalidRequestError
from slipway.serving.tensors import (
    TensorHeader,
    check_contents,
    make_batch,
    make_tensor,
    read_headers,
    read_typed_contents,
    tensor_contents,
)

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
datatypes = pytest.mark.parametrize("datatype", DATATYPES.values(), ids=DATATYPES)


def decode(request: protocol.ModelInferRequest) -> list[torch.Tensor]:
    headers = list(read_headers("m", request).values())
    if request.raw_input_contents:
        contents = [memoryview(raw) for raw in request.raw_input_contents]
        check_contents("m", headers, contents, range(len(headers)))
    else:
        contents = read_typed_contents("m", request, headers)
    return list(map(make_tensor, headers, contents))


def encode(tensor: torch.Tensor) -> bytes:
    return tensor_contents(tensor).tobytes()


def raw_request(datatype: str, shape: tuple[int, ...], raw: bytes) -> protocol.ModelInferRequest:
    request = protocol.ModelInferRequest(raw_input_contents=[raw])
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    return request


def typed_request(
    datatype: str, shape: tuple[int, ...], **contents: object
) -> protocol.ModelInferRequest:
    request = protocol.ModelInferRequest()
    item = request.inputs.add(name="x", datatype=datatype, shape=shape)
    item.contents.CopyFrom(protocol.InferTensorContents(**contents))  # type: ignore[arg-type]
    return request


def test_a_tensor_takes_a_copy_as_it_is_and_leaves_a_message_alone() -> None:
    header = TensorHeader("x", 0, DATATYPES["UINT8"], (3,))
    message, copy = bytes(3), bytearray(3)
    for content in (message, copy):
        make_tensor(header, memoryview(content)).fill_(7)
    assert (message, copy) == (bytes(3), b"\7\7\7")


def test_an_output_that_torch_would_negate_when_it_is_read_is_encoded() -> None:
    for size in (1, 3):
        imaginary = torch.view_as_complex(torch.arange(2.0 * size).reshape(1, size, 2)).conj().imag
        assert imaginary.is_neg()
        expected = [-1.0, -3.0, -5.0][:size]
        assert np.frombuffer(encode(imaginary), np.float32).tolist() == expected


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        action()
    assert caught.value.violations
    return str(caught.value)


def random_bytes(data: st.DataObject, datatype: Datatype, shape: tuple[int, ...]) -> bytes:
    count = math.prod(shape)
    if datatype.name == "BOOL":
        return bytes(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    size = count * datatype.item_size
    return data.draw(st.binary(min_size=size, max_size=size))


def test_every_datatype_has_the_size_of_its_dtype() -> None:
    for datatype in DATATYPES.values():
        assert datatype.item_size == datatype.dtype.itemsize
        assert datatype_of(datatype.scalar_type) is datatype
    assert "BYTES" not in DATATYPES


@datatypes
@given(data=st.data(), shape=SHAPES)
def test_raw_contents_come_back_bit_by_bit(
    datatype: Datatype, data: st.DataObject, shape: tuple[int, ...]
) -> None:
    raw = random_bytes(data, datatype, shape)
    (tensor,) = decode(raw_request(datatype.name, shape, raw))
    assert tensor.dtype is datatype.dtype
    assert tensor.shape == shape
    assert encode(tensor) == raw


@pytest.mark.parametrize("name", [name for name, item in DATATYPES.items() if item.contents_field])
@given(data=st.data(), shape=SHAPES)
def test_typed_contents_are_the_same_tensor_as_raw(
    name: str, data: st.DataObject, shape: tuple[int, ...]
) -> None:
    datatype = DATATYPES[name]
    assert datatype.contents_field is not None
    raw = random_bytes(data, datatype, shape)
    values = np.frombuffer(raw, np.dtype(datatype.scalar_type.value))
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0)
    (tensor,) = decode(typed_request(name, shape, **{datatype.contents_field: values.tolist()}))
    assert tensor.dtype is datatype.dtype
    assert tensor.shape == shape
    assert encode(tensor) == values.tobytes()


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("bool_contents", ["BOOL"]),
        ("int_contents", ["INT8", "INT16", "INT32"]),
        ("int64_contents", ["INT64"]),
        ("uint_contents", ["UINT8", "UINT16", "UINT32"]),
        ("uint64_contents", ["UINT64"]),
        ("fp32_contents", ["FP32"]),
        ("fp64_contents", ["FP64"]),
    ],
)
def test_typed_contents_are_in_the_field_that_the_protocol_says(
    field: str, names: list[str]
) -> None:
    for name in names:
        (tensor,) = decode(typed_request(name, (2,), **{field: [0, 1]}))
        assert tensor.tolist() == [0, 1]


def test_a_decoded_tensor_can_be_written_to_without_changing_the_request() -> None:
    for raw in (b"\x07", b"\x07" * 64):
        request = raw_request("UINT8", (len(raw),), raw)
        (tensor,) = decode(request)
        tensor.zero_()
        assert request.raw_input_contents[0] == raw
        assert set(raw) == {7}


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "scalar", "grad", "half"])
def test_outputs_of_any_layout_are_encoded_row_major(layout: str) -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensor = {
        "transposed": base.t(),
        "strided": base[:, ::2],
        "expanded": base[:, :1].expand(3, 4),
        "scalar": base[1, 1],
        "grad": torch.ones(2, requires_grad=True) * 2,
        "half": torch.ones(2, dtype=torch.float16, requires_grad=True) * 2,
    }[layout]
    assert encode(tensor) == tensor.detach().contiguous().numpy().tobytes()


@datatypes
def test_an_output_of_one_element_is_encoded_whatever_its_stride(datatype: Datatype) -> None:
    one = torch.tensor([[1, 0]]).to(datatype.dtype)[:, 0]
    assert one.stride() == (2,)
    assert torch.frombuffer(bytearray(encode(one)), dtype=datatype.dtype).tolist() == [1]


def test_shapes_with_negative_sizes_are_refused() -> None:
    request = raw_request("FP32", (-1, 16), b"")
    text = refusal(lambda: read_headers("m", request))
    assert "All input dimensions should be specified for input 'x'" in text
    assert "dimension 0 of shape [-1, 16] is -1" in text


@pytest.mark.parametrize(
    "shape", [(2**62, 2), (2**61, 1), (2**62, 2**62, 0), (0, 2**62, 2**62), (2**40,) * 64]
)
def test_shapes_beyond_the_address_space_are_refused(shape: tuple[int, ...]) -> None:
    request = raw_request("FP32", shape, b"")
    text = refusal(lambda: read_headers("m", request))
    assert "byte size for input 'x' exceeds maximum size of 9223372036854775807" in text
    assert len(text) < 1000


def test_the_largest_shape_is_left_to_the_check_of_its_contents() -> None:
    text = refusal(lambda: decode(raw_request("UINT8", (2**63 - 1,), b"")))
    assert "takes 9223372036854775807 bytes, got 0" in text


# To multiply the sizes of the second would take minutes.
@pytest.mark.parametrize("shape", [(1,) * 65, (2**63 - 1,) * 300_000], ids=len)
def test_shapes_of_more_dimensions_than_tensors_have_are_refused(shape: tuple[int, ...]) -> None:
    request = raw_request("FP32", shape, b"")
    text = refusal(lambda: read_headers("m", request))
    assert f"input 'x' has {len(shape)} dimensions; no tensor here has more than 64" in text


def test_empty_tensors_may_have_huge_other_sizes() -> None:
    (tensor,) = decode(raw_request("UINT8", (0, 2**62), b""))
    assert tensor.shape == (0, 2**62)


@pytest.mark.parametrize("datatype", ["BYTES", "FP8", "float32", "", "x" * 100_000])
def test_datatypes_that_no_tensor_has_are_refused(datatype: str) -> None:
    request = raw_request(datatype, (1,), b"\0")
    text = refusal(lambda: read_headers("m", request))
    assert "input 'x' has datatype" in text
    assert "BOOL, UINT8" in text
    assert len(text) < 1000


def test_duplicate_inputs_are_refused_and_all_problems_named_at_once() -> None:
    request = protocol.ModelInferRequest()
    request.inputs.add(name="x", datatype="BYTES", shape=[1])
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    request.inputs.add(name="y", datatype="FP32", shape=[-5])
    with pytest.raises(InvalidRequestError) as caught:
        read_headers("m", request)
    assert [item.field for item in caught.value.violations] == [
        "inputs[x].datatype",
        "inputs[x]",
        "inputs[y].shape",
    ]
    assert str(caught.value).startswith("m refused the request for 3 reasons:\n- ")


@datatypes
@given(data=st.data())
def test_a_batch_is_the_concatenation_of_its_tensors(
    datatype: Datatype, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, 2))
    sizes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    shape = data.draw(st.lists(st.integers(0, 3), min_size=3, max_size=3))
    tensors: list[torch.Tensor] = []
    headers: list[TensorHeader] = []
    contents: list[memoryview] = []
    for size in sizes:
        shape[axis] = size
        raw = random_bytes(data, datatype, tuple(shape))
        request = raw_request(datatype.name, tuple(shape), raw)
        tensors += decode(request)
        headers += read_headers("m", request).values()
        contents.append(memoryview(raw))
    shape[axis] = sum(sizes)
    batch = make_batch(headers, contents, axis, tuple(shape), {})
    expected = torch.cat(tensors, dim=axis)
    assert batch.shape == expected.shape
    assert encode(batch) == encode(expected)


@datatypes
@given(
    rows=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    rest=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    axis=st.integers(0, 1),
    data=st.data(),
)
def test_requests_are_padded_at_the_end_of_what_they_lack(
    datatype: Datatype, rows: list[int], rest: list[int], axis: int, data: st.DataObject
) -> None:
    """Sizes agree but for those along the batch and the first of the other dimensions."""
    lacking = data.draw(st.integers(1, len(rest)))
    value = data.draw(st.sampled_from([0, 1]))
    headers, contents, parts = [], [], []
    for count in rows:
        size, *others = (
            size - data.draw(st.integers(0, size)) if place < lacking else size
            for place, size in enumerate(rest)
        )
        shape = (count, size, *others) if not axis else (size, count, *others)
        part = torch.ones(shape).to(datatype.dtype)
        request = raw_request(datatype.name, shape, encode(part))
        headers += read_headers("m", request).values()
        contents.append(memoryview(encode(part)))
        filled = torch.full(
            (count, rest[0], *rest[1:]) if not axis else (rest[0], count, *rest[1:]), value
        ).to(datatype.dtype)
        filled[tuple(map(slice, shape))] = part
        parts.append(filled)
    expected = torch.cat(parts, dim=axis)
    values = {place: value for place in range(expected.dim()) if place != axis}
    batch = make_batch(headers, contents, axis, tuple(expected.shape), values)
    assert (batch.dtype, batch.shape) == (expected.dtype, expected.shape)
    assert encode(batch) == encode(expected)


@pytest.mark.parametrize("size", [0, 4, 7, 12])
def test_byte_counts_that_differ_from_the_shape_are_refused(size: int) -> None:
    text = refusal(lambda: decode(raw_request("FP32", (2,), b"\0" * size)))
    assert "input byte size mismatch for input 'x'" in text
    assert text.endswith(f"shape [2] of FP32 takes 8 bytes, got {size}")


@pytest.mark.parametrize("count", [3, 5000])
@pytest.mark.parametrize("octet", [2, 255])
def test_bool_bytes_must_be_zero_or_one(count: int, octet: int) -> None:
    good = b"\0" + b"\1" * (count - 2)
    text = refusal(lambda: decode(raw_request("BOOL", (count,), good + bytes([octet]))))
    assert f"element {count - 1} is {octet}" in text


def test_typed_contents_must_be_in_the_field_of_the_datatype() -> None:
    text = refusal(lambda: decode(typed_request("FP32", (1,), fp64_contents=[1.0])))
    assert "FP32, whose elements go in fp32_contents; fp64_contents holds 1" in text


@pytest.mark.parametrize("name", ["FP16", "BF16"])
def test_half_precision_is_raw_only(name: str) -> None:
    text = refusal(lambda: decode(typed_request(name, (1,), fp32_contents=[1.0])))
    assert f"{name}, whose elements go only in raw_input_contents" in text
    text = refusal(lambda: decode(typed_request(name, (1,))))
    assert "unable to find data for input tensor 'x'" in text
    (tensor,) = decode(typed_request(name, (0,)))
    assert tensor.shape == (0,)


@pytest.mark.parametrize("count", [2, 4])
def test_typed_contents_must_be_as_many_as_the_shape_takes(count: int) -> None:
    text = refusal(lambda: decode(typed_request("INT64", (3,), int64_contents=range(count))))
    assert f"shape [3] of INT64 takes 3 elements, int64_contents holds {count}" in text


def test_an_input_without_data_is_refused() -> None:
    text = refusal(lambda: decode(typed_request("INT64", (3,))))
    assert "unable to find data for input tensor 'x'" in text
    assert "takes 3 elements, and both raw_input_contents and int64_contents are empty" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [("INT8", 128), ("INT8", -129), ("INT16", 2**15), ("UINT8", 256), ("UINT16", 2**16)],
)
def test_typed_values_must_fit_the_datatype(name: str, value: int) -> None:
    field = DATATYPES[name].contents_field
    assert field is not None
    text = refusal(lambda: decode(typed_request(name, (2,), **{field: [0, value]})))
    assert f"element 1 is {value}" in text
