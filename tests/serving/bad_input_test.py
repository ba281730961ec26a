"""Requests that are refused: each with a named status, and the next good one is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from tritonclient.grpc import InferenceServerClient, service_pb2

from slipway.tests.serving.requests import (
    call,
    field_violations,
    infer_request,
    send_bytes,
    tensor,
    zeros,
)
from slipway.tests.serving.server_process import ServerProcess

Edit = Callable[[Any], None]


@pytest.fixture(autouse=True)
def the_next_good_request_is_answered(
    server: ServerProcess, client: InferenceServerClient
) -> Iterator[None]:
    yield
    x = np.ones((1, 4), np.float32)
    assert client.infer("affine", [tensor("x", x, "FP32")]).as_numpy("y").shape == (1, 3)
    assert server.process.poll() is None


def good() -> Any:
    return infer_request("lookup", tokens=zeros("INT64", [2, 3], 8), mask=zeros("BOOL", [2, 3], 1))


def edited(**changes: object) -> Edit:
    """Returns an edit that sets fields of the request's first input."""

    def edit(request: Any) -> None:
        for field, value in changes.items():
            if field == "shape":
                request.inputs[0].shape[:] = value
            else:
                setattr(request.inputs[0], field, value)

    return edit


def refused(channel: grpc.Channel, request: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", request)
    return caught.value


def both_typed_and_raw(request: Any) -> None:
    request.inputs[0].contents.int64_contents.append(1)


def typed(field: str, *values: object) -> Edit:
    def edit(request: Any) -> None:
        del request.raw_input_contents[:]
        getattr(request.inputs[0].contents, field).extend(values)
        request.inputs[1].contents.bool_contents.extend([False] * 6)

    return edit


def parameter(name: str, **value: object) -> Edit:
    def edit(request: Any) -> None:
        request.parameters[name].CopyFrom(service_pb2.InferParameter(**value))

    return edit


def on_input(name: str) -> Edit:
    def edit(request: Any) -> None:
        request.inputs[0].parameters[name].string_param = "x"

    return edit


def output(*names: str, parameter: str = "") -> Edit:
    def edit(request: Any) -> None:
        for name in names:
            item = request.outputs.add(name=name)
            if parameter:
                item.parameters[parameter].int64_param = 1

    return edit


INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

# name: (what is done to the good request, status, part of the text, field of the details)
CASES: dict[str, tuple[Edit, grpc.StatusCode, str, str | None]] = {
    "unknown model": (
        lambda request: setattr(request, "model_name", "nope"),
        NOT_FOUND,
        "Request for unknown model: 'nope' is not found",
        None,
    ),
    "no model": (
        lambda request: setattr(request, "model_name", ""),
        INVALID,
        "Model name cannot be empty",
        None,
    ),
    "path as model": (
        lambda request: setattr(request, "model_name", "../../etc"),
        NOT_FOUND,
        "'../../etc' is not found",
        None,
    ),
    "unknown version": (
        lambda request: setattr(request, "model_version", "99"),
        NOT_FOUND,
        "'lookup' version 99 is not found",
        None,
    ),
    "version that is no number": (
        lambda request: setattr(request, "model_version", "latest"),
        INVALID,
        "version should be an integral value > 0",
        None,
    ),
    "unknown input": (edited(name="extra"), INVALID, "input 'extra' is unknown", "inputs[extra]"),
    "missing input": (edited(name="extra"), INVALID, "input 'tokens' is missing", "inputs[tokens]"),
    "duplicate input": (
        edited(name="mask"),
        INVALID,
        "input 'mask' already exists in request",
        "inputs[mask]",
    ),
    "no inputs": (
        lambda request: request.ClearField("inputs"),
        INVALID,
        "input 'mask' is missing",
        "inputs[mask]",
    ),
    "wrong dtype": (
        edited(datatype="INT32"),
        INVALID,
        "'tokens': the dtype is int32; allowed: int64",
        "inputs[tokens].datatype",
    ),
    "BYTES": (edited(datatype="BYTES"), INVALID, "datatype BYTES", "inputs[tokens].datatype"),
    "FP8": (edited(datatype="FP8"), INVALID, "datatype 'FP8'", "inputs[tokens].datatype"),
    "wrong rank": (edited(shape=[6]), INVALID, "the rank of", "inputs[tokens].shape"),
    "size beyond its range": (
        edited(shape=[9, 3]),
        INVALID,
        "'tokens' dimension 0 (batch) is 9; allowed: 0..4; nearest legal value: 4",
        "inputs[tokens].shape[0]",
    ),
    "sizes that must agree": (
        edited(shape=[2, 4]),
        INVALID,
        "'mask' dimension 1",
        "inputs[mask].shape[1]",
    ),
    "empty where not allowed": (
        edited(shape=[2, 0]),
        INVALID,
        "dimension 1 (seq) is 0; allowed: 1..16",
        "inputs[tokens].shape[1]",
    ),
    "size of -1": (
        edited(shape=[-1, 3]),
        INVALID,
        "All input dimensions should be specified for input 'tokens'",
        "inputs[tokens].shape",
    ),
    "most negative size": (
        edited(shape=[-(2**63), 3]),
        INVALID,
        "is -9223372036854775808",
        "inputs[tokens].shape",
    ),
    "product beyond 2**63": (
        edited(shape=[2**40, 2**40]),
        INVALID,
        "byte size for input 'tokens' exceeds maximum size",
        "inputs[tokens].shape",
    ),
    "too few bytes": (
        lambda request: request.raw_input_contents.__setitem__(0, bytes(40)),
        INVALID,
        "input byte size mismatch for input 'tokens': shape [2, 3] of INT64 takes 48 bytes, got 40",
        "raw_input_contents[0]",
    ),
    "too many bytes": (
        lambda request: request.raw_input_contents.__setitem__(1, bytes(7)),
        INVALID,
        "input byte size mismatch for input 'mask': shape [2, 3] of BOOL takes 6 bytes, got 7",
        "raw_input_contents[1]",
    ),
    "a raw entry too few": (
        lambda request: request.raw_input_contents.pop(),
        INVALID,
        "raw_input_contents has 1 entry for 2 inputs",
        "raw_input_contents",
    ),
    "a raw entry too many": (
        lambda request: request.raw_input_contents.append(b""),
        INVALID,
        "raw_input_contents has 3 entries for 2 inputs",
        "raw_input_contents",
    ),
    "no data": (
        lambda request: request.ClearField("raw_input_contents"),
        INVALID,
        "unable to find data for input tensor 'tokens'",
        "inputs[tokens].contents",
    ),
    "raw and typed": (
        both_typed_and_raw,
        INVALID,
        "contents field must not be specified when using raw_input_contents for 'tokens'",
        "inputs[tokens].contents",
    ),
    "wrong typed field": (
        typed("int_contents", *[1] * 6),
        INVALID,
        "INT64, whose elements go in int64_contents; int_contents holds 6",
        "inputs[tokens].contents",
    ),
    "too few typed elements": (
        typed("int64_contents", 1),
        INVALID,
        "takes 6 elements, int64_contents holds 1",
        "inputs[tokens].contents",
    ),
    "BOOL that is 2": (
        lambda request: request.raw_input_contents.__setitem__(1, b"\0\1\2\0\0\0"),
        INVALID,
        "element 2 is 2",
        "raw_input_contents[1]",
    ),
    "token outside the vocabulary": (
        lambda request: request.raw_input_contents.__setitem__(0, b"\x7f" + bytes(47)),
        INVALID,
        "a value of an input selects an element that does not exist",
        None,
    ),
    "input in shared memory": (
        on_input("shared_memory_region"),
        UNIMPLEMENTED,
        "Client shared memory is disabled",
        None,
    ),
    "output in shared memory": (
        output("kept", parameter="shared_memory_region"),
        UNIMPLEMENTED,
        "Client shared memory is disabled",
        None,
    ),
    "classification": (
        output("kept", parameter="classification"),
        UNIMPLEMENTED,
        "classification is not supported",
        None,
    ),
    "unknown output": (
        output("nope"),
        INVALID,
        "unexpected inference output 'nope'; the outputs are 'embedded', 'kept'",
        "outputs[nope]",
    ),
    "duplicate output": (
        output("kept", "kept"),
        INVALID,
        "output 'kept' already exists in request",
        "outputs[kept]",
    ),
    "parameter of the wrong type": (
        parameter("slipway_return_program_digest", string_param="true"),
        INVALID,
        "'slipway_return_program_digest' parameter, expected bool_param",
        "parameters[slipway_return_program_digest]",
    ),
    "unknown parameter of ours": (
        parameter("slipway_retrun_program_digest", bool_param=True),
        INVALID,
        "unknown parameter 'slipway_retrun_program_digest'",
        "parameters[slipway_retrun_program_digest]",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_request(channel: grpc.Channel, name: str) -> None:
    edit, status, text, field = CASES[name]
    request = good()
    edit(request)
    error = refused(channel, request)
    assert error.code() is status, error.details()
    assert text in error.details()
    if field is not None:
        assert field in [where for where, _ in field_violations(error)]
    elif status is not INVALID:
        assert field_violations(error) == []


def test_the_request_that_is_edited_is_good(channel: grpc.Channel) -> None:
    assert len(call(channel, "ModelInfer", good()).outputs) == 2


def test_a_broken_version_is_unavailable(channel: grpc.Channel) -> None:
    request = infer_request("affine", x=zeros("FP32", [1, 4]))
    request.model_version = "3"
    error = refused(channel, request)
    assert error.code() is UNAVAILABLE
    assert "'affine' version 3 is not at ready state" in error.details()


def test_every_violation_is_named_at_once(channel: grpc.Channel) -> None:
    error = refused(channel, infer_request("affine", x=zeros("FP64", [9, 5], 8)))
    assert error.code() is INVALID
    assert error.details() == (
        "model 'affine' version 2 refused the request for 3 reasons:\n"
        "- input 'x': the dtype is float64; allowed: float32\n"
        "- input 'x' dimension 1 is 5; allowed: exactly 4; nearest legal value: 4\n"
        "- input 'x' dimension 0 (batch) is 9; allowed: 1..8; nearest legal value: 8"
    )
    assert field_violations(error) == [
        ("inputs[x].datatype", "DTYPE"),
        ("inputs[x].shape[1]", "STATIC_SIZE"),
        ("inputs[x].shape[0]", "RANGE"),
    ]


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff", b"\x0a\x02\xff\xfe", bytes(1000)])
def test_bytes_that_are_no_message_are_invalid(channel: grpc.Channel, data: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        send_bytes(channel, "ModelInfer", data)
    assert caught.value.code() is INVALID
    assert ", is no inference.ModelInferRequest" in caught.value.details()


@pytest.mark.parametrize("count", [1, 50, 5000])
def test_a_refusal_reaches_the_client_however_much_is_wrong(
    channel: grpc.Channel, count: int
) -> None:
    request = service_pb2.ModelInferRequest(model_name="affine")
    for index in range(count):
        request.inputs.add(name=f"{index}é\n" * 300, datatype="FP32", shape=[1])
    error = refused(channel, request)
    assert error.code() is INVALID, error.details()
    assert "refused the request" in error.details()
    assert field_violations(error)


def test_a_client_that_gives_up_harms_nobody(channel: grpc.Channel) -> None:
    slow = infer_request("power", x=zeros("FP32", [1024, 1024]))
    method = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=type(slow).SerializeToString,
    )
    calls = [method.future(slow) for _ in range(4)]
    for item in calls:
        item.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", slow, timeout=0.001)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_arbitrary_requests_never_are_an_internal_error(
    channel: grpc.Channel, data: st.DataObject
) -> None:
    sizes = st.one_of(st.integers(-2, 20), st.sampled_from([2**31, 2**62, 2**63 - 1, -(2**63)]))
    request = service_pb2.ModelInferRequest(
        model_name=data.draw(st.sampled_from(["affine", "lookup", "echo"])),
        raw_input_contents=data.draw(st.lists(st.binary(max_size=128), max_size=3)),
    )
    names = st.sampled_from(["x", "tokens", "mask", "fp32", "bool", ""])
    kinds = st.sampled_from(["FP32", "INT64", "BOOL", "FP16", "BYTES", ""])
    for _ in range(data.draw(st.integers(0, 3))):
        item = request.inputs.add(
            name=data.draw(names),
            datatype=data.draw(kinds),
            shape=data.draw(st.lists(sizes, max_size=4)),
        )
        if data.draw(st.booleans()):
            item.contents.fp32_contents.extend(data.draw(st.lists(st.just(1.0), max_size=16)))
    try:
        call(channel, "ModelInfer", request)
    except grpc.RpcError as error:
        assert error.code() is INVALID, error.details()
