"""Calls of the tests' own client that nobody answers."""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterator

import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from slipway.tests.serving.clients import open_client


@pytest.fixture
def client() -> Iterator[InferenceServerClient]:
    """Of an address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with open_client(f"127.0.0.1:{port}", timeout=5) as connection:
            yield connection


def test_a_call_fails(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
        client.get_server_metadata()


def test_a_stream_fails(client: InferenceServerClient) -> None:
    errors: queue.Queue[InferenceServerException] = queue.Queue()
    client.start_stream(lambda result, error: errors.put(error))
    assert "Deadline Exceeded" in str(errors.get(timeout=30))
