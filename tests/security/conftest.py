from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from slipway.tests.serving.programs import write_affine, write_lookup
from slipway.tests.serving.requests import call, infer_request, zeros

Outcome = Callable[..., str]
"""Takes a channel, the name of a method and metadata; returns OK or a status's name."""


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with affine, version 1, and version 2, which is broken."""
    root = tmp_path_factory.mktemp("repository")
    write_affine(root / "affine" / "1")
    write_affine(root / "affine" / "2")
    write_lookup(root / "lookup" / "1")
    (root / "affine" / "2" / "program.pb").write_bytes(b"\xff" * 100)
    return root


@pytest.fixture
def requests() -> dict[str, Any]:
    """A request for each method that is no stream, by the method's name."""
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    found = {
        method.name: getattr(service_pb2, method.input_type.name)()
        for method in service.methods
        if not method.server_streaming
    }
    found["ModelInfer"] = infer_request("affine", x=zeros("FP32", [1, 4]))
    return found


@pytest.fixture
def outcome(requests: dict[str, Any]) -> Outcome:
    def outcome_of(
        channel: grpc.Channel, method: str, metadata: list[tuple[str, str]] | None = None
    ) -> str:
        try:
            call(channel, method, requests[method], metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    return outcome_of
