"""ModelStreamInfer as tritonclient uses it, and ModelStatistics."""

from __future__ import annotations

import queue
import time
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferResult, service_pb2
from tritonclient.utils import InferenceServerException

from slipway.tests.serving.programs import AFFINE_WEIGHT
from slipway.tests.serving.requests import call, infer_request, tensor, zeros

BOUND = 20
"""Seconds, after which answers of small models are taken never to come."""

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


def test_each_request_of_a_stream_is_answered_with_its_id(client: InferenceServerClient) -> None:
    answers: queue.Queue[tuple[InferResult, InferenceServerException]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=BOUND)
    for value in range(100):
        x = np.full((1, 4), value, np.float32)
        client.async_stream_infer(
            "affine", [tensor("x", x, "FP32")], model_version="1", request_id=str(value)
        )
    results = {}
    for _ in range(100):
        result, error = answers.get(timeout=BOUND)
        assert error is None
        results[int(result.get_response().id)] = float(result.as_numpy("y")[0, 0])
    client.stop_stream()
    total = float(AFFINE_WEIGHT[0].sum())
    assert results == {value: value * total for value in range(100)}


def test_a_refused_request_is_answered_on_the_stream_which_goes_on(channel: grpc.Channel) -> None:
    requests = [
        infer_request("affine", x=zeros("FP32", [1, 4])),
        infer_request("affine", x=zeros("FP32", [9, 4])),
        infer_request("nope", x=zeros("FP32", [1, 4])),
        infer_request(
            "lookup", tokens=("INT64", [1, 1], b"\x7f" + bytes(7)), mask=zeros("BOOL", [1, 1], 1)
        ),
        infer_request("affine", x=zeros("FP32", [1, 4])),
    ]
    for index, request in enumerate(requests):
        request.id = str(index)
    responses = list(stream(channel, requests))
    messages = {response.infer_response.id: response.error_message for response in responses}
    assert messages["0"] == messages["4"] == ""
    assert "'x' dimension 0 (batch) is 9" in messages["1"]
    assert "unknown model: 'nope'" in messages["2"]
    assert "selects an element that does not exist" in messages["3"]
    assert len(responses) == 5


def test_bytes_that_are_no_message_are_answered_on_the_stream(channel: grpc.Channel) -> None:
    method = channel.stream_stream(STREAM)
    good = infer_request("affine", x=zeros("FP32", [1, 4])).SerializeToString()
    responses = [
        service_pb2.ModelStreamInferResponse.FromString(data)
        for data in method(iter([b"\xff", good]), timeout=BOUND)
    ]
    assert len(responses) == 2
    assert any("is no inference.ModelInfer" in response.error_message for response in responses)


def test_a_client_that_leaves_its_stream_harms_nobody(
    channel: grpc.Channel, client: InferenceServerClient
) -> None:
    slow = infer_request("power", x=zeros("FP32", [512, 512]))
    responses = stream(channel, [slow] * 50)
    next(responses)
    responses.cancel()
    x = np.ones((1, 4), np.float32)
    assert client.infer("affine", [tensor("x", x, "FP32")]).as_numpy("y").shape == (1, 3)
    # What waited is forgotten, so this is not behind it.
    assert call(channel, "ModelInfer", slow).outputs


def stream(channel: grpc.Channel, requests: list[Any]) -> Any:
    method = channel.stream_stream(
        STREAM,
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )
    return method(iter(requests), timeout=BOUND)


def statistics(client: InferenceServerClient, model: str, version: str) -> Any:
    (found,) = client.get_inference_statistics(model, version).model_stats
    return found


def test_statistics_count_what_was_done(
    client: InferenceServerClient, channel: grpc.Channel
) -> None:
    before = statistics(client, "affine", "1")
    x = np.ones((3, 4), np.float32)
    for _ in range(4):
        client.infer("affine", [tensor("x", x, "FP32")], model_version="1")
    bad = infer_request("affine", x=zeros("FP32", [9, 4]))
    bad.model_version = "1"
    with pytest.raises(grpc.RpcError):
        call(channel, "ModelInfer", bad)
    expected = before.inference_count + 12
    # The last one is counted after it was answered.
    deadline = time.monotonic() + BOUND
    while (after := statistics(client, "affine", "1")).inference_count < expected:
        assert time.monotonic() < deadline, "it was never counted"
        time.sleep(0.01)
    assert after.inference_count == expected
    assert after.execution_count - before.execution_count == 4
    assert after.last_inference >= before.last_inference
    old, new = before.inference_stats, after.inference_stats
    for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(new, stage).count - getattr(old, stage).count == 4
        assert getattr(new, stage).ns >= getattr(old, stage).ns
    assert new.success.ns > old.success.ns
    assert new.fail.count - old.fail.count == 1
    sizes = {batch.batch_size: batch.compute_infer.count for batch in after.batch_stats}
    assert sizes[3] >= 4


def test_statistics_are_of_every_version_unless_one_is_named(
    client: InferenceServerClient,
) -> None:
    every = client.get_inference_statistics().model_stats
    assert [(item.name, item.version) for item in every] == [
        ("affine", "1"),
        ("affine", "2"),
        ("echo", "1"),
        ("lookup", "1"),
        ("power", "1"),
    ]
    of_one = client.get_inference_statistics("affine").model_stats
    assert [item.version for item in of_one] == ["1", "2"]
    for name, version in (("nope", ""), ("affine", "99")):
        with pytest.raises(InferenceServerException) as caught:
            client.get_inference_statistics(name, version)
        assert caught.value.status() == "StatusCode.NOT_FOUND"
