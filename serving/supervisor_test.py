"""What a supervisor does about its workers; that of servers is in //tests/operations."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipway.serving import supervisor
from slipway.serving.supervisor import Supervisor

WORKER = """
import os, pathlib, signal, sys
been_here, again = map(pathlib.Path, sys.argv[1:])
if been_here.exists():
    again.write_text("again")
    sys.stdin.read()
been_here.touch()
os.write(1, %(written)s)
os.kill(os.getpid(), %(signal)s)
"""


@contextlib.contextmanager
def running(supervisor: Supervisor) -> Iterator[None]:
    """Runs a supervisor beside the test, and stops it."""
    stop = threading.Event()
    thread = threading.Thread(target=supervisor.run, args=[stop], daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def await_file(path: Path) -> None:
    """Waits until there is one."""
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def require_another_start(folder: Path, written: bytes, number: str = "signal.SIGKILL") -> None:
    """Has a worker write something and end by a signal, and waits until it is started again."""
    again = folder / "again"
    os.mkfifo(again)
    script = WORKER % {"written": written, "signal": number}
    command = [sys.executable, "-c", script, str(folder / "been here"), str(again)]
    with running(Supervisor(command, count=1, grace_seconds=0.0)):
        fifo = os.open(again, os.O_RDONLY | os.O_NONBLOCK)
        try:
            readable, _, _ = select.select([fifo], [], [], 30)
            assert readable
        finally:
            os.close(fifo)


@pytest.mark.parametrize(
    ("written", "number"), [(b"\xff\n", "signal.SIGKILL"), (b"", "signal.SIGRTMIN + 6")]
)
def test_a_worker_is_started_again_whatever_it_wrote_and_ended_with(
    tmp_path: Path, written: bytes, number: str
) -> None:
    require_another_start(tmp_path, written, number)


def test_a_worker_is_started_again_though_nobody_reads_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    require_another_start(tmp_path, b"a line\n")
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_worker_is_started_again_though_what_it_wrote_cannot_be_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    require_another_start(tmp_path, "\u00e9\n".encode())


@pytest.mark.parametrize(
    ("limits", "pauses"),
    [
        ({}, [0.5, 1.0]),
        ({"_LONGEST_PAUSE": 0.75}, [0.5, 0.75]),
        ({"_WORKED": 0.0}, [0.5, 0.5]),
    ],
)
def test_a_worker_that_goes_on_ending_waits_twice_as_long_each_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limits: dict[str, float],
    pauses: list[float],
) -> None:
    for name, seconds in limits.items():
        monkeypatch.setattr(supervisor, name, seconds)
    starts = tmp_path / "starts"
    script = "import sys, time; print(time.monotonic(), file=open(sys.argv[1], 'a'))"
    times: list[float] = []
    with running(Supervisor([sys.executable, "-c", script, str(starts)], 1, grace_seconds=0.0)):
        until = time.monotonic() + 30
        while len(times) <= len(pauses):
            assert time.monotonic() < until
            time.sleep(0.01)
            times = list(map(float, starts.read_text().split())) if starts.exists() else []
    # What it said it waited, and that it did: how long a process takes to start nobody knows.
    for index, pause in enumerate(pauses):
        assert caplog.messages[index].endswith(f"it is started again in {pause:g} seconds")
        assert times[index + 1] - times[index] >= pause


def test_one_that_cannot_be_helped_is_started_again_while_others_serve(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Each takes the next place, and it is the second that ends.
    script = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
place = 0
while True:
    try:
        (folder / str(place)).touch(exist_ok=False)
        break
    except FileExistsError:
        place += 1
if place == 1:
    while not (folder / "ready").exists():
        time.sleep(0.01)
    time.sleep(0.5)  # until the supervisor knows
    sys.exit(2)
print("slipway: serving it", flush=True)
(folder / "ready").touch()
sys.stdin.read()
"""
    printed = ""
    with running(Supervisor([sys.executable, "-c", script, str(tmp_path)], 2, grace_seconds=0.0)):
        await_file(tmp_path / "2")
        until = time.monotonic() + 30
        while not printed:
            assert time.monotonic() < until
            printed = capfd.readouterr().out
            time.sleep(0.01)
    assert printed + capfd.readouterr().out == "slipway: serving it\n"


STOPPED = """
import os, pathlib, signal, sys, threading
from slipway.serving.supervisor import follow_parent
been_here, again = map(pathlib.Path, sys.argv[1:])
stop = threading.Event()
follow_parent(stop)
if been_here.exists():
    again.write_text("again")
else:
    been_here.touch()
    threading.Event().wait(0.5)  # until it has given a sign of life
    os.kill(os.getpid(), signal.SIGSTOP)
stop.wait()
"""


def test_a_worker_that_is_stopped_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    again = tmp_path / "again"
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "been here"), str(again)]
    with running(Supervisor(command, count=1, grace_seconds=0.0, silence_seconds=4.0)):
        await_file(again)
        assert "has given no sign of life for 4 seconds, and is killed" in caplog.messages[0]
        assert caplog.messages[1] == (
            "worker 0 ended with SIGKILL; it is started again in 0.5 seconds"
        )
        # The other goes on giving them, and lives.
        time.sleep(6)
        assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("pauses", "silence_seconds"),
    [
        pytest.param([4.0], 2.0, id="before the first sign"),
        pytest.param([0.0, 2.5, 2.5, 2.5], 4.0, id="between signs, together longer than allowed"),
        pytest.param([0.0, 4.0], 0.0, id="with no limit"),
    ],
)
def test_a_worker_that_is_slow_is_not_killed(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    pauses: list[float],
    silence_seconds: float,
) -> None:
    done = tmp_path / "done"
    script = f"""
import pathlib, socket, sys, time
link = socket.socket(fileno=0)
for pause in {pauses}:
    time.sleep(pause)
    link.send(b".")
pathlib.Path(sys.argv[1]).touch()
link.recv(1)
"""
    command = [sys.executable, "-c", script, str(done)]
    with running(Supervisor(command, 1, grace_seconds=0.0, silence_seconds=silence_seconds)):
        await_file(done)
    assert not caplog.messages
