"""Bearer tokens, separately for inference and for control."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from slipway.tests.security.authority import replace
from slipway.tests.security.conftest import Outcome
from slipway.tests.serving.server_process import ServerProcess

READER = "the-token-of-readers"
OPERATOR = "the-token-of-operators"

OPEN = {"ServerLive", "ServerReady", "ModelReady"}
CONTROL = {
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "LogSettings",
    "TraceSetting",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
}


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokens")
    digest = hashlib.sha256(OPERATOR.encode()).hexdigest()
    (directory / "readers").write_text(f"{READER}\n")
    (directory / "operators").write_text(f"sha256:{digest}\n")
    return directory


@pytest.fixture(scope="module")
def server(repository: Path, directory: Path) -> Iterator[ServerProcess]:
    flags = [
        f"--inference-tokens={directory / 'readers'}",
        f"--control-tokens={directory / 'operators'}",
        "--log-level=error",
    ]
    with ServerProcess(repository, flags) as process:
        yield process


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as connection:
        yield connection


def test_each_method_asks_for_its_own_token(
    channel: grpc.Channel, outcome: Outcome, requests: dict[str, Any]
) -> None:
    refused = ("UNAUTHENTICATED", "PERMISSION_DENIED")
    for method in requests:
        found = {
            who: outcome(channel, method, metadata)
            for who, metadata in (
                ("nobody", None),
                ("stranger", bearer("a-token-that-nobody-knows")),
                ("reader", bearer(READER)),
                ("operator", bearer(OPERATOR)),
            )
        }
        if method in OPEN:
            assert set(found.values()) == {"OK"}, method
            continue
        assert found["nobody"] == "UNAUTHENTICATED", method
        assert found["stranger"] == "PERMISSION_DENIED", method
        allowed, other = ("operator", "reader") if method in CONTROL else ("reader", "operator")
        assert found[other] == "PERMISSION_DENIED", method
        assert found[allowed] not in refused, method
    assert outcome(channel, "ModelInfer", bearer(READER)) == "OK"
    assert requests.keys() > CONTROL | OPEN


def test_streams_ask_for_the_token_of_inference(
    channel: grpc.Channel, requests: dict[str, Any]
) -> None:
    stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    message = requests["ModelInfer"].SerializeToString()
    assert len(list(stream(iter([message]), metadata=bearer(READER), timeout=60))) == 1
    for metadata, code in (
        (None, grpc.StatusCode.UNAUTHENTICATED),
        (bearer(OPERATOR), grpc.StatusCode.PERMISSION_DENIED),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            list(stream(iter([message]), metadata=metadata, timeout=60))
        assert caught.value.code() is code


def test_health_is_open_and_reflection_is_not(channel: grpc.Channel) -> None:
    request = health_pb2.HealthCheckRequest()
    serving = health_pb2.HealthCheckResponse.SERVING
    # More than once: a method that gRPC was told of is asked for again after each call.
    for _ in range(3):
        assert health_pb2_grpc.HealthStub(channel).Check(request, timeout=60).status == serving
    watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=60)
    assert next(watch).status == serving
    watch.cancel()

    reflection = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    for _ in range(3):
        with pytest.raises(grpc.RpcError) as caught:
            list(reflection(iter([question]), timeout=60))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    (answer,) = reflection(iter([question]), metadata=bearer(READER), timeout=60)
    assert answer.list_services_response.service


def test_methods_that_are_not_there_are_not_told_apart(channel: grpc.Channel) -> None:
    for method in ("/inference.GRPCInferenceService/Nothing", "/a.B/C", "/", "/x"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method)(b"", timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_message_of_one_who_may_not_send_it_is_not_read(channel: grpc.Channel) -> None:
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        infer(bytes(100 * 2**20), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_tokens_are_replaced_while_serving(
    directory: Path, channel: grpc.Channel, outcome: Outcome
) -> None:
    new = "another-token-of-readers"
    replace(directory / "readers", new.encode())
    while outcome(channel, "ModelInfer", bearer(new)) != "OK":
        pass
    assert outcome(channel, "ModelInfer", bearer(READER)) == "PERMISSION_DENIED"
    replace(directory / "readers", READER.encode())
    while outcome(channel, "ModelInfer", bearer(READER)) != "OK":
        pass
