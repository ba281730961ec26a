"""What a supervisor does about its workers; that of servers is in //tests/operations."""

from __future__ import annotations

import os
import select
import sys
import threading
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("written", "number"), [(b"\xff\n", "signal.SIGKILL"), (b"", "signal.SIGRTMIN + 6")]
)
def test_a_worker_is_started_again_whatever_it_wrote_and_ended_with(
    tmp_path: Path, written: bytes, number: str
) -> None:
    again = tmp_path / "again"
    os.mkfifo(again)
    script = WORKER % {"written": written, "signal": number}
    command = [sys.executable, "-c", script, str(tmp_path / "been here"), str(again)]
    stop = threading.Event()
    supervisor = Supervisor(command, count=1, grace_seconds=0.0)
    running = threading.Thread(target=supervisor.run, args=[stop], daemon=True)
    running.start()
    fifo = os.open(again, os.O_RDONLY | os.O_NONBLOCK)
    try:
        readable, _, _ = select.select([fifo], [], [], 30)
        assert readable
    finally:
        os.close(fifo)
        stop.set()
        running.join()
