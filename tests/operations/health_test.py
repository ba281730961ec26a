"""grpc.health.v1 through every change, and while models compute."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from slipway.tests.operations.load import INFER, open_channel, power_request
from slipway.tests.operations.repository_changes import (
    damage,
    has_reason,
    is_gone,
    is_ready,
)
from slipway.tests.operations.scene import Scene, running
from slipway.tests.serving.programs import write_affine

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with running(tmp_path, "--model-control=poll", "--poll-seconds=0.1") as made:
        yield made


@pytest.fixture
def stub(scene: Scene) -> Iterator[health_pb2_grpc.HealthStub]:
    with open_channel(scene.address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


class Watch:
    """What a client is told that watches a service."""

    def __init__(self, stub: health_pb2_grpc.HealthStub, service: str) -> None:
        self._seen: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._call = stub.Watch(health_pb2.HealthCheckRequest(service=service))
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> int:
        return self._seen.get(timeout=60)

    def is_quiet(self) -> bool:
        return self._seen.empty()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._seen.put(response.status)
        except grpc.RpcError:
            pass  # the server has gone, and with it the test


def status(stub: health_pb2_grpc.HealthStub, service: str) -> int:
    response = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
    return int(response.status)


def test_a_model_that_comes_and_goes_is_told_to_those_who_watch(
    scene: Scene, stub: health_pb2_grpc.HealthStub
) -> None:
    late, server = Watch(stub, "late"), Watch(stub, "")
    assert late.next() == SERVICE_UNKNOWN
    assert server.next() == SERVING
    write_affine(scene.root / "late" / "1")
    assert late.next() == SERVING
    assert status(stub, "late") == SERVING
    shutil.rmtree(scene.root / "late")
    assert late.next() == NOT_SERVING
    assert status(stub, "late") == NOT_SERVING
    assert status(stub, "") == SERVING
    assert server.is_quiet()


def test_a_broken_version_and_a_roll_back_change_nothing_of_it(
    scene: Scene, stub: health_pb2_grpc.HealthStub
) -> None:
    watch = Watch(stub, "affine")
    assert watch.next() == SERVING
    write_affine(scene.root / "affine" / "2")
    scene.control.await_index(is_ready(2), "version 2")
    damage(scene.root / "affine" / "2")
    scene.control.await_index(has_reason(2), "a reason")
    shutil.rmtree(scene.root / "affine" / "2")
    scene.control.await_index(is_gone(2), "the end of version 2")
    assert status(stub, "affine") == SERVING
    assert watch.is_quiet()


def test_a_model_that_is_unloaded_on_request_is_not_serving(tmp_path: Path) -> None:
    flags = ("--model-control=explicit", "--load-model=affine")
    with running(tmp_path, *flags) as scene, open_channel(scene.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert status(stub, "affine") == SERVING
        watch = Watch(stub, "affine")
        assert watch.next() == SERVING
        scene.control.unload()
        assert watch.next() == NOT_SERVING
        assert scene.control.index() == {"1": ("UNAVAILABLE", "unloaded")}
        # The model is not wanted any more, so the server as a whole is ready without it.
        assert status(stub, "") == SERVING
        scene.control.is_explicit = True
        scene.control.follow()
        assert watch.next() == SERVING


def test_health_does_not_wait_for_models(scene: Scene, stub: health_pb2_grpc.HealthStub) -> None:
    with open_channel(scene.address) as channel:
        infer = channel.unary_unary(INFER)
        # Quick ones first: what is quick is run by the thread that receives.
        for _ in range(30):
            infer(power_request(4).SerializeToString(), timeout=60)
        slow = power_request(1024).SerializeToString()
        calls = [infer.future(slow, timeout=60) for _ in range(4)]
        answers = 0
        while not calls[0].done():
            assert status(stub, "power") == SERVING
            answers += not calls[0].done()
        # At least once, and on any machine often, while the first one was being computed.
        assert answers > 0
        assert all(call.result() for call in calls)
