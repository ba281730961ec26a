"""Who reads requests: no thread that takes a processor from a batch for each message."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from runfiles import Runfiles
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from slipway.tests.serving.clients import open_client
from slipway.tests.serving.server_process import server_command, server_environment

CALLS = 500
SHORTEST_SLICE = 100_000
"""Nanoseconds; Linux allows no less."""


@pytest.fixture(params=["server", "bundle"])
def server(request: pytest.FixtureRequest, repository: Path) -> Iterator[tuple[int, str]]:
    """Gives the process and the address of //serving:server, and of a torch_server."""
    command = server_command(f"--repository={repository}", "--port=0")
    if request.param == "bundle":
        runfiles = Runfiles.Create()
        assert runfiles is not None
        command = [runfiles.Rlocation("slipway/tests/serving/bundle"), "--port=0"]
    process = subprocess.Popen(command, env=server_environment(), stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            yield process.pid, process.stdout.readline().split()[-1]
        finally:
            process.kill()


def test_messages_wake_no_thread_of_grpc(server: tuple[int, str]) -> None:
    process, address = server
    with open_client(address) as client:
        assert client.is_server_live()
        before = wakings(process)
        assert all(client.is_server_live() for _ in range(CALLS))
        # Its timers go on.
        assert wakings(process) - before < CALLS / 2


@pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 12),
    reason="Linux keeps no slice of a thread's own before 6.12",
)
def test_only_the_thread_that_receives_wants_short_slices(server: tuple[int, str]) -> None:
    process, address = server
    with open_client(address) as client:
        # Large messages are read by another thread, which the one that receives starts.
        large = InferInput("x", [2**19], "FP32")
        large.set_data_from_numpy(np.zeros(2**19, np.float32))
        with pytest.raises(InferenceServerException, match="unknown model"):
            client.infer("none", [large])
    slices = [own_slice(int(task.name)) for task in Path(f"/proc/{process}/task").iterdir()]
    usual = own_slice(process)
    assert sorted(size for size in slices if size != usual) == [SHORTEST_SLICE]


def own_slice(thread: int) -> int:
    """Returns for how many nanoseconds a thread keeps its processor, if others want it too."""
    library = ctypes.CDLL(None, use_errno=True)
    attributes = ctypes.create_string_buffer(48)
    number = {"x86_64": 315, "aarch64": 275}[platform.machine()]
    assert library.syscall(number, thread, attributes, 48, 0) == 0, os.strerror(ctypes.get_errno())
    # struct sched_attr of sched_getattr(2): the runtime lies behind six other fields.
    return struct.unpack_from("=Q", attributes, 24)[0]


def wakings(process: int) -> int:
    """Returns how often the threads that gRPC has for connections waited for something."""
    counts = []
    for task in Path(f"/proc/{process}/task").iterdir():
        if (task / "comm").read_text().strip() == "event_engine":
            lines = (task / "status").read_text().splitlines()
            counts += [int(line.split()[1]) for line in lines if line.startswith("voluntary")]
    assert counts, "gRPC names its threads otherwise, or the process is another"
    return sum(counts)
