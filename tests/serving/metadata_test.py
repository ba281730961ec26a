"""Health, metadata, reflection, and the methods that are not there."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import InferenceServerClient, service_pb2
from tritonclient.utils import InferenceServerException

from slipway.tests.serving.requests import call
from slipway.tests.serving.server_process import ServerProcess

SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
IMPLEMENTED = {
    "LogSettings",
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelConfig",
    "ModelInfer",
    "ModelStreamInfer",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryUnregister",
}


def test_the_ready_line_is_as_promised(server: ServerProcess) -> None:
    assert server.ready_line == f"slipway: serving 5 programs at {server.address}\n"
    assert server.address.startswith("127.0.0.1:")


def test_server_is_live_and_ready(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()


def test_model_ready_is_no_error_for_models_that_are_not(client: InferenceServerClient) -> None:
    assert client.is_model_ready("affine")
    assert client.is_model_ready("affine", "1")
    assert not client.is_model_ready("affine", "3")
    assert not client.is_model_ready("affine", "99")
    assert not client.is_model_ready("nope")


def test_server_metadata_names_only_what_is_implemented(client: InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert metadata.name == "slipway"
    assert metadata.version
    assert list(metadata.extensions) == [
        "binary_tensor_data",
        "logging",
        "model_configuration",
        "model_repository",
        "statistics",
    ]


def test_model_metadata_comes_from_the_contract(client: InferenceServerClient) -> None:
    metadata = client.get_model_metadata("affine", as_json=True)
    assert metadata == {
        "name": "affine",
        "versions": ["1", "2"],
        "platform": "slipway_program",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": ["-1", "3"]}],
    }


def test_model_config_is_what_perf_analyzer_expects(client: InferenceServerClient) -> None:
    config = client.get_model_config("affine").config
    assert (config.name, config.max_batch_size) == ("affine", 8)
    assert list(config.input[0].dims) == [4]
    assert config.HasField("dynamic_batching")
    metadata = client.get_model_metadata("affine")
    assert [item.name for item in config.input] == [item.name for item in metadata.inputs]
    assert len(metadata.inputs[0].shape) == len(config.input[0].dims) + 1
    # `power` has no batch, so its dimensions are as they stand.
    config = client.get_model_config("power").config
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [-1, -1])
    assert not config.HasField("dynamic_batching")


def test_unknown_models_are_not_found(client: InferenceServerClient) -> None:
    for method in (client.get_model_metadata, client.get_model_config):
        with pytest.raises(InferenceServerException) as caught:
            method("nope")
        assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_the_repository_index_has_every_version_and_reasons(client: InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    states = {(item.name, item.version): item.state for item in index.models}
    assert states == {
        ("affine", "1"): "READY",
        ("affine", "2"): "READY",
        ("affine", "3"): "UNAVAILABLE",
        ("echo", "1"): "READY",
        ("lookup", "1"): "READY",
        ("power", "1"): "READY",
    }
    (reason,) = (item.reason for item in index.models if item.state != "READY")
    assert reason.startswith("affine/3")


def test_the_repository_index_can_be_of_ready_versions_only(channel: grpc.Channel) -> None:
    request = service_pb2.RepositoryIndexRequest(ready=True)
    assert len(call(channel, "RepositoryIndex", request).models) == 5


@pytest.mark.parametrize("method", sorted({item.name for item in SERVICE.methods} - IMPLEMENTED))
def test_the_rest_of_the_protocol_is_unimplemented(channel: grpc.Channel, method: str) -> None:
    path = f"/{SERVICE.full_name}/{method}"
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(b"", timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == f"{method} is not implemented by this server"


@pytest.mark.parametrize(
    "method",
    ["SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"],
)
def test_shared_memory_is_off_unless_it_is_allowed(channel: grpc.Channel, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE.full_name}/{method}")(b"", timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == (
        "Client shared memory is disabled: start the server with --allow-client-shared-memory"
    )


def test_there_is_never_cuda_shared_memory_to_unregister(client: InferenceServerClient) -> None:
    client.unregister_cuda_shared_memory()


def test_health_is_of_the_server_and_of_each_model(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "affine", "lookup"):
        response = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
        assert response.status == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_the_services_and_has_their_definitions(
    channel: grpc.Channel, version: str
) -> None:
    stream = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )

    def ask(**question: str) -> Any:
        request = reflection_pb2.ServerReflectionRequest(**question)
        (response,) = stream(iter([request]), timeout=60)
        return response

    services = {item.name for item in ask(list_services="").list_services_response.service}
    assert services == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    }
    for name in services:
        files = ask(file_containing_symbol=name).file_descriptor_response.file_descriptor_proto
        (file,) = map(descriptor_pb2.FileDescriptorProto.FromString, files)
        assert [f"{file.package}.{item.name}" for item in file.service] == [name]
