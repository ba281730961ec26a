"""A server that is watched, and clients that give it something to show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from slipway.tests.monitoring import traffic
from slipway.tests.monitoring.watched_server import WatchedServer
from slipway.tests.serving.clients import open_client


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return traffic.write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedServer]:
    """The server of all tests of a file that need no flags; they leave it as it was."""
    with WatchedServer(repository, tmp_path_factory.mktemp("server") / "log") as process:
        yield process


@pytest.fixture
def client(server: WatchedServer) -> Iterator[InferenceServerClient]:
    with open_client(server.address) as connection:
        yield connection
