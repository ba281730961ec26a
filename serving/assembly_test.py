"""What becomes of settings in the server that is made of them, as its clients see it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
import torch
from google.protobuf.message import Message

from slipway.program import Method
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.assembly import make_server
from slipway.serving.authorization import Authorizer
from slipway.serving.command_line import parse
from slipway.tests.serving.programs import write_affine
from slipway.tests.serving.scheduling import affine


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("affine", "other"):
        write_affine(tmp_path / name / "1")
    return tmp_path


class Client:
    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def start(self, method: str, message: bytes, timeout: float = 60) -> grpc.Future:
        call = self._channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        return call.future(message, timeout=timeout)

    def call(self, method: str, request: Message) -> bytes:
        response: bytes = self.start(method, request.SerializeToString()).result()
        return response

    def instances(self) -> int:
        """Returns how many batches of affine run at the same time."""
        data = self.call("ModelConfig", protocol.ModelConfigRequest(name="affine"))
        (group,) = protocol.ModelConfigResponse.FromString(data).config.instance_group
        return group.count


@contextlib.contextmanager
def serving(root: Path, *flags: str) -> Iterator[Client]:
    configuration = parse([f"--repository={root}", *flags]).configuration
    server = make_server(configuration, Authorizer(), lambda: None)
    with grpc.insecure_channel(server.start("127.0.0.1", 0)) as channel:
        server.load(lambda: False)
        yield Client(channel)
        assert server.drain(60)


def test_as_many_batches_run_at_the_same_time_as_this_process_has_processors(root: Path) -> None:
    usual = os.sched_getaffinity(0)
    processors = len(usual)
    with serving(root) as client:
        assert client.instances() == min(processors, 8)
    with serving(root, "--processes=2") as client:
        assert client.instances() == max(1, min(processors // 2, 8))
    with serving(root, f"--processes={2 * processors}") as client:
        assert client.instances() == 1
    os.sched_setaffinity(0, {min(usual)})
    try:
        with serving(root) as client:
            assert client.instances() == 1
    finally:
        os.sched_setaffinity(0, usual)
    with serving(root, "--instances=3") as client:
        assert client.instances() == 3


def test_a_batch_runs_in_so_many_threads_as_are_set(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Method.run
    threads: list[int] = []

    def run(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        threads.append(torch.get_num_threads())
        return original(self, tensors)

    with serving(root, "--threads=7") as client:
        monkeypatch.setattr(Method, "run", run)
        client.start("ModelInfer", affine()).result()
    assert threads == [7]


def test_a_request_waits_for_others_in_milliseconds(root: Path) -> None:
    with serving(root, "--instances=1", "--batch-delay-ms=100") as client:
        started = time.monotonic()
        calls = [client.start("ModelInfer", affine(), timeout=30) for _ in range(20)]
        assert all(call.result() for call in calls)
        # Were it seconds, some would wait until half of their time is over.
        assert time.monotonic() - started < 14


def test_models_to_load_are_all_only_where_models_are_loaded_on_request(root: Path) -> None:
    for flags, expected in (
        ((), {"affine", "other"}),
        (("--load-model=affine",), {"affine", "other"}),
        (("--load-model=affine", "--model-control=explicit"), {"affine"}),
    ):
        with serving(root, *flags) as client:
            data = client.call("RepositoryIndex", protocol.RepositoryIndexRequest(ready=True))
            index = protocol.RepositoryIndexResponse.FromString(data)
            assert {model.name for model in index.models} == expected


def test_what_is_served_of_models_that_can_be_replaced_is_a_copy_of_their_files(root: Path) -> None:
    (shard,) = (root / "affine" / "1").rglob("*.safetensors")
    with serving(root, "--load-model=affine", "--model-control=explicit") as client:
        before = client.start("ModelInfer", affine()).result()
        with shard.open("r+b") as file:
            file.seek(-16, os.SEEK_END)
            file.write(bytes(16))
        assert client.start("ModelInfer", affine()).result() == before
