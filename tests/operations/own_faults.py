"""Faults that each need a server of their own, started for them or ended by them."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc

from slipway.tests.operations import poison_ops
from slipway.tests.operations.load import (
    INFER,
    Load,
    affine_request,
    infer,
    open_channel,
    power_request,
    wait_until,
)
from slipway.tests.operations.scene import Scene, children, running
from slipway.tests.serving.programs import write_poison

__all__ = ["FAULTS", "Fault", "NotPossible"]

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

_SHIFTS = (3600, -3600, 86400, -10 * 365 * 86400, 0)
"""Seconds by which the wall clock is off, one after the other."""


Fault = Callable[[Path], int]


class NotPossible(Exception):
    """A fault cannot be brought about on this machine; the text says why."""


def killed_worker(folder: Path) -> int:
    """A worker of several is killed while it holds requests: these fail, and nothing else does."""
    with running(folder, "--processes=2") as scene:
        _await_workers(scene, 2)
        with Load(scene.address, clients=8) as load:
            load.await_more()
            # One only: until it is back the other is alone, and there must always be one.
            _kill_one(scene)
            load.await_more(100)
        assert load.codes <= {_UNAVAILABLE}, load.summary()
        assert sum(load.failed.values()) <= load.answered, load.summary()
        scene.probe()
        assert scene.server.stop() == 0
    return load.lost + len(load.wrong)


def _kill_one(scene: Scene) -> None:
    """Kills the worker that holds a slow request, and sees what its client is told."""
    victim = children(scene.pid)[0]
    with open_channel(scene.address) as channel:
        message = power_request(1024).SerializeToString()
        # Connections are spread over the workers: some of these are held by the victim.
        channels = [open_channel(scene.address) for _ in range(8)]
        calls = [other.unary_unary(INFER).future(message, timeout=120) for other in channels]
        infer(channel, affine_request("beside"))
        os.kill(victim, signal.SIGKILL)
        codes = {call.code() if call.exception() else grpc.StatusCode.OK for call in calls}
        for other in channels:
            other.close()
    assert codes <= {grpc.StatusCode.OK, _UNAVAILABLE}, codes
    wait_until(
        lambda: len(children(scene.pid)) == 2 and victim not in children(scene.pid), "a new worker"
    )


def stopped_worker(folder: Path) -> int:
    """A worker of several is stopped, and so says nothing any more: it is killed and replaced."""
    with running(folder, "--processes=2", "--silence-seconds=5") as scene:
        _await_workers(scene, 2)
        with Load(scene.address, clients=8) as load:
            load.await_more()
            victim = children(scene.pid)[0]
            os.kill(victim, signal.SIGSTOP)
            wait_until(
                lambda: len(children(scene.pid)) == 2 and victim not in children(scene.pid),
                "a new worker",
            )
            load.await_more(100)
        assert load.codes <= {_UNAVAILABLE}, load.summary()
        scene.probe()
        assert scene.server.stop() == 0
    return load.lost + len(load.wrong)


def _await_workers(scene: Scene, count: int) -> None:
    assert len(children(scene.pid)) == count, scene.end_of_log()


def stopped_in_mid_batch(folder: Path) -> int:
    """SIGTERM comes while batches run: they are answered, and what comes later is turned away."""
    with running(folder) as scene, Load(scene.address) as load:
        load.await_more()
        with open_channel(scene.address) as channel:
            message = power_request(1024).SerializeToString()
            calls = [channel.unary_unary(INFER).future(message, timeout=120) for _ in range(4)]
            # Once one is answered the others have arrived: they were sent while it ran.
            next(call for call in calls if call.result())
            scene.server.process.terminate()
            assert all(call.result() for call in calls)
        assert scene.server.process.wait(timeout=120) == 0, scene.end_of_log()
        wait_until(lambda: bool(load.failed), "requests to be turned away")
    assert load.codes <= {_UNAVAILABLE, grpc.StatusCode.CANCELLED}, load.summary()
    return load.lost + len(load.wrong)


def failed_device(folder: Path) -> int:
    """A device fails for good: the server ends by itself, with its own code, and comes back."""
    write_poison(folder / "repository" / "poison" / "1")
    modules = folder / "modules"
    modules.mkdir()
    shutil.copy(str(poison_ops.__file__), modules / "slipway_poison.py")
    path = os.pathsep.join(filter(None, [str(modules), os.environ.get("PYTHONPATH")]))
    with running(
        folder,
        "--supervise",
        "--custom-ops=slipway_poison",
        environment={"PYTHONPATH": path},
    ) as scene:
        (worker,) = children(scene.pid)
        request = affine_request("poison")
        request.model_name = "poison"
        with open_channel(scene.address) as channel:
            try:
                infer(channel, request)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.INTERNAL, error
                assert "the server stops" in (error.details() or ""), error
            else:
                raise AssertionError("a device that fails gave an answer")
        wait_until(lambda: "ended with exit code 3" in scene.end_of_log(), "the worker's end")
        with Load(scene.address) as load:
            load.await_more()
        assert worker not in children(scene.pid)
        assert load.codes <= {_UNAVAILABLE}, load.summary()
        scene.probe()
        assert scene.server.stop() == 0
    return load.lost + len(load.wrong)


def clock_jump(folder: Path) -> int:
    """The wall clock jumps by hours and years, forth and back."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NotPossible("there is no C compiler for what stands between the server and its clock")
    source, library = Path(__file__).with_name("clock_shim.c"), folder / "clock_shim.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True
    )
    shift = folder / "shift"
    shift.write_bytes(struct.pack("l", 0))
    environment = {"LD_PRELOAD": str(library), "SLIPWAY_CLOCK_SHIFT": str(shift)}
    with (
        running(folder, "--model-control=poll", environment=environment) as scene,
        shift.open("r+b") as file,
        mmap.mmap(file.fileno(), 8) as clock,
        Load(scene.address) as load,
        open_channel(scene.address) as channel,
    ):
        load.await_more()
        for seconds in _SHIFTS:
            # Requests with a deadline wait while the clock jumps.
            message = power_request(512).SerializeToString()
            calls = [channel.unary_unary(INFER).future(message, timeout=100) for _ in range(4)]
            clock[:8] = struct.pack("l", seconds)
            assert all(call.result() for call in calls)
            load.await_more()
            scene.probe()
        assert scene.server.stop() == 0
    assert load.codes <= {_UNAVAILABLE, grpc.StatusCode.CANCELLED}, load.summary()
    return load.lost + len(load.wrong)


FAULTS: tuple[Fault, ...] = (
    killed_worker,
    stopped_worker,
    stopped_in_mid_batch,
    failed_device,
    clock_jump,
)
"""Each returns how many requests were lost without an error."""
