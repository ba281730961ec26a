"""Requests that are answered."""

from __future__ import annotations

import threading

import grpc
import numpy as np
import pytest
import torch
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput, service_pb2

from slipway.serving.datatypes import DATATYPES
from slipway.serving.tensors import tensor_contents
from slipway.tests.serving.programs import AFFINE_WEIGHT, LOOKUP_TABLE
from slipway.tests.serving.requests import call, infer_request, tensor


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_answers_equal_the_model(client: InferenceServerClient, batch: int) -> None:
    x = np.random.default_rng(batch).standard_normal((batch, 4), np.float32)
    y = client.infer("affine", [tensor("x", x, "FP32")], model_version="1").as_numpy("y")
    np.testing.assert_allclose(y, x @ AFFINE_WEIGHT.numpy().T, rtol=1e-5)


def test_the_latest_version_that_is_ready_answers_by_default(client: InferenceServerClient) -> None:
    x = np.ones((1, 4), np.float32)
    result = client.infer("affine", [tensor("x", x, "FP32")])
    assert result.get_response().model_version == "2"
    np.testing.assert_allclose(result.as_numpy("y"), x @ AFFINE_WEIGHT.numpy().T * 2)


def test_inputs_may_come_in_any_order(client: InferenceServerClient) -> None:
    tokens = np.array([[0, 1, 2], [2, 1, 0]])
    mask = np.array([[True, True, False], [True, False, False]])
    inputs = [tensor("mask", mask, "BOOL"), tensor("tokens", tokens, "INT64")]
    result = client.infer("lookup", inputs)
    np.testing.assert_array_equal(result.as_numpy("embedded"), LOOKUP_TABLE.numpy()[tokens])
    np.testing.assert_array_equal(result.as_numpy("kept"), ~mask)


def test_outputs_come_as_requested(client: InferenceServerClient) -> None:
    inputs = [
        tensor("tokens", np.zeros((1, 1), np.int64), "INT64"),
        tensor("mask", np.zeros((1, 1), np.bool_), "BOOL"),
    ]

    def names(*requested: str) -> list[str]:
        outputs = [InferRequestedOutput(name) for name in requested]
        response = client.infer("lookup", inputs, outputs=outputs).get_response()
        assert len(response.raw_output_contents) == len(response.outputs)
        return [output.name for output in response.outputs]

    assert names() == ["embedded", "kept"]
    assert names("kept") == ["kept"]
    assert names("kept", "embedded") == ["kept", "embedded"]


def test_the_id_comes_back_and_parameters_only_when_asked_for(channel: grpc.Channel) -> None:
    request = infer_request("affine", x=("FP32", [1, 4], bytes(16)))
    request.id = "my id"
    response = call(channel, "ModelInfer", request)
    assert response.id == "my id"
    assert not response.parameters
    request.parameters["slipway_return_program_digest"].bool_param = True
    response = call(channel, "ModelInfer", request)
    digest = response.parameters["slipway_program_digest"].string_param
    config = call(channel, "ModelConfig", service_pb2.ModelConfigRequest(name="affine")).config
    assert digest == config.parameters["slipway_program_digest"].string_value
    assert len(bytes.fromhex(digest)) == 32


@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_datatype_goes_in_and_comes_out_raw(channel: grpc.Channel, count: int) -> None:
    generator = np.random.default_rng(count)
    inputs: dict[str, tuple[str, list[int], bytes]] = {}
    for name, datatype in DATATYPES.items():
        raw = generator.bytes(count * datatype.item_size)
        if name == "BOOL":
            raw = bytes(octet & 1 for octet in raw)
        inputs[name.lower()] = (name, [count], raw)
    response = call(channel, "ModelInfer", infer_request("echo", **inputs))
    assert [output.name for output in response.outputs] == [f"{name}_out" for name in inputs]
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        assert (output.datatype, output.shape, raw) == inputs[output.name.removesuffix("_out")]


def test_every_datatype_that_has_typed_contents_goes_in_typed(channel: grpc.Channel) -> None:
    request = service_pb2.ModelInferRequest(model_name="echo")
    for name, datatype in DATATYPES.items():
        item = request.inputs.add(name=name.lower(), datatype=name, shape=[0])
        if datatype.contents_field is not None:
            item.shape[:] = [2]
            getattr(item.contents, datatype.contents_field).extend([1, 0])
    response = call(channel, "ModelInfer", request)
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        datatype = DATATYPES[output.datatype]
        values = torch.tensor([1, 0] if datatype.contents_field else [], dtype=datatype.dtype)
        assert raw == tensor_contents(values)


def test_typed_contents_are_answered(channel: grpc.Channel) -> None:
    request = service_pb2.ModelInferRequest(model_name="lookup")
    tokens = request.inputs.add(name="tokens", datatype="INT64", shape=[1, 3])
    tokens.contents.int64_contents.extend([2, 0, 1])
    mask = request.inputs.add(name="mask", datatype="BOOL", shape=[1, 3])
    mask.contents.bool_contents.extend([True, False, True])
    embedded, kept = call(channel, "ModelInfer", request).raw_output_contents
    assert embedded == LOOKUP_TABLE[torch.tensor([2, 0, 1])].numpy().tobytes()
    assert kept == b"\0\1\0"


def test_empty_tensors_are_answered_where_the_contract_allows_them(
    client: InferenceServerClient,
) -> None:
    inputs = [
        tensor("tokens", np.zeros((0, 3), np.int64), "INT64"),
        tensor("mask", np.zeros((0, 3), np.bool_), "BOOL"),
    ]
    assert client.infer("lookup", inputs).as_numpy("embedded").shape == (0, 3, 2)


def test_messages_may_be_much_larger_than_grpc_allows_by_default(channel: grpc.Channel) -> None:
    inputs: dict[str, tuple[str, list[int], bytes]] = {
        name.lower(): (name, [0], b"") for name in DATATYPES
    }
    inputs["uint8"] = ("UINT8", [2**26], np.random.default_rng(0).bytes(2**26))
    response = call(channel, "ModelInfer", infer_request("echo", **inputs))
    assert inputs["uint8"][2] in response.raw_output_contents


def test_requests_at_the_same_time_get_their_own_answers(client: InferenceServerClient) -> None:
    results: dict[int, float] = {}

    def run(value: int) -> None:
        x = np.full((1, 4), value, np.float32)
        y = client.infer("affine", [tensor("x", x, "FP32")], model_version="1").as_numpy("y")
        results[value] = float(y[0, 0])

    threads = [threading.Thread(target=run, args=(value,)) for value in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {value: value * float(AFFINE_WEIGHT[0].sum()) for value in range(32)}
