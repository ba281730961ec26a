"""One server for all tests that do not stop it, and clients to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient

from slipway.tests.serving import programs
from slipway.tests.serving.clients import open_client
from slipway.tests.serving.server_process import ServerProcess


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with affine (versions 1, 2, and 3 broken), lookup, echo and power."""
    root = tmp_path_factory.mktemp("repository")
    programs.write_affine(root / "affine" / "1")
    programs.write_affine(root / "affine" / "2", scale=2.0)
    programs.write_affine(root / "affine" / "3")
    (root / "affine" / "3" / "program.pb").write_bytes(b"\xff" * 100)
    programs.write_lookup(root / "lookup" / "1")
    programs.write_echo(root / "echo" / "1")
    programs.write_power(root / "power" / "1")
    return root


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[ServerProcess]:
    with ServerProcess(repository) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[InferenceServerClient]:
    with open_client(server.address) as connection:
        yield connection


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    """For requests that tritonclient would not make."""
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.address, options) as connection:
        yield connection
