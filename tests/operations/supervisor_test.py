"""A process that keeps servers running: its exit codes, and what it starts again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from slipway.tests.operations.load import Load, wait_until
from slipway.tests.operations.repository_changes import make_repository
from slipway.tests.operations.scene import children, running
from slipway.tests.serving.server_process import server_command, server_environment


def run_server(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        server_command(*flags),
        env=server_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_it_starts_again_what_ends_on_the_same_port_and_ends_with_0(tmp_path: Path) -> None:
    with running(tmp_path, "--supervise") as scene:
        assert scene.server.ready_line.startswith("slipway: serving 3 programs at 127.0.0.1:")
        (worker,) = children(scene.pid)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: children(scene.pid) not in ([], [worker]), "another worker")
        # Before there are lines of requests that come while models load.
        assert "ended with SIGKILL; it is started again in 0.5 seconds" in scene.end_of_log()
        with Load(scene.address) as load:
            load.await_more()
        (other,) = children(scene.pid)
        # Stopped by someone who does not know better: the server goes on.
        os.kill(other, signal.SIGTERM)
        wait_until(lambda: children(scene.pid) not in ([], [other]), "another worker")
        assert scene.server.stop() == 0


def test_its_workers_end_when_it_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, "--processes=2") as scene:
        workers = children(scene.pid)
        assert len(workers) == 2
        scene.server.process.kill()
        for worker in workers:
            wait_until(lambda worker=worker: _has_ended(worker), "a worker's end")


def _has_ended(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0]
    except FileNotFoundError:
        return True
    return state == "Z"  # for want of somebody who waits for it


def test_a_server_that_cannot_start_is_not_started_again(tmp_path: Path) -> None:
    result = run_server(f"--repository={tmp_path / 'missing'}", "--port=0", "--supervise")
    assert result.returncode == 2
    assert result.stderr.count("cannot read the model repository") == 1
    assert "it is started again" not in result.stderr
    assert result.stdout == ""


def test_a_port_that_is_taken_is_exit_code_1(tmp_path: Path) -> None:
    make_repository(tmp_path / "repository")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_server(
            f"--repository={tmp_path / 'repository'}", f"--port={port}", "--processes=2"
        )
    assert result.returncode == 1
    assert (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; --port takes another port"
    ) in result.stderr


def test_metrics_do_not_take_the_port_of_requests(tmp_path: Path) -> None:
    port = _free_ports(3)
    flags = ("--processes=2", f"--metrics-port={port}", f"--port={port + 1}")
    with running(tmp_path, *flags) as scene:
        for number in (port, port + 2):
            with urllib.request.urlopen(
                f"http://127.0.0.1:{number}/readyz", timeout=60
            ) as response:
                assert response.read() == b"ready\n"
        scene.probe()


def _free_ports(count: int) -> int:
    """Returns the first of some ports in a row."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
                return int(first)


@pytest.mark.parametrize("flag", ["--model-control=explicit", "--allow-client-shared-memory"])
def test_what_only_one_process_would_know_of_needs_one(tmp_path: Path, flag: str) -> None:
    result = run_server(f"--repository={tmp_path}", "--port=0", "--processes=2", flag)
    assert result.returncode == 2
    assert "needs processes = 1" in result.stderr
