"""Server processes that a benchmark starts and stops."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from runfiles import Runfiles

__all__ = [
    "ServerProcess",
    "Worker",
    "compute_worker",
    "example_repository",
    "module_command",
    "slipway_server",
]


class ServerProcess:
    """A process that prints its address as the last word of its first line.

    It has a process group of its own, which is ended at the end of a `with` block.

    Attributes:
      address: HOST:PORT.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        prefix: str = "",
        seconds: float = 120,
    ) -> None:
        """Starts it and waits for the line.

        Args:
          command: what to run.
          environment: all of it.
          prefix: of the line that counts; lines that start with something else are passed over.
          seconds: to wait for it.

        Raises:
          RuntimeError: the line did not come.
        """
        # No session of its own: Linux gives each session a share of the processors, and priorities
        # count within it only (sched(7), autogroup), which containers know nothing of.
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, process_group=0
        )
        assert self.process.stdout is not None
        overdue = threading.Timer(seconds, self._end)
        overdue.start()
        line = self.process.stdout.readline()
        while line and not line.startswith(prefix):
            line = self.process.stdout.readline()
        overdue.cancel()
        if not line:
            self._end()
            raise RuntimeError(
                f"{command[0]} ended, or was not ready within {seconds:g} seconds: exit code "
                f"{self.process.wait()}"
            )
        self.address = line.split()[-1]
        # What else it prints must not fill the pipe.
        output = self.process.stdout
        threading.Thread(target=lambda: [None for _ in output], daemon=True).start()

    def memory(self) -> int:
        """Returns the bytes resident for it and its children; what they share counts for each."""
        return sum(_resident_size(number) for number in _tree(self.process.pid))

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Worker:
    """A process that answers each line of JSON with one."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **task: object) -> dict[str, float]:
        """Returns the answer to a task.

        Raises:
          RuntimeError: the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with exit code {self._process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()


def slipway_server(flags: Sequence[str]) -> ServerProcess:
    """Starts //examples:server on a free port, with `flags` after its own."""
    command = [str(_runfile("slipway/examples/server")), "--port=0", "--log-level=error", *flags]
    return ServerProcess(command, dict(os.environ) | _runfiles().EnvVars(), prefix="slipway:")


def module_command(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Returns the command and environment that run a module of ours with this process's imports."""
    environment = dict(os.environ) | {"PYTHONPATH": ":".join(sys.path)}
    return [sys.executable, "-m", module, *arguments], environment


def compute_worker(threads: int, device: str = "cpu") -> Worker:
    """Starts a worker that calls the example programs, with so many threads, on a device."""
    command = "slipway.bench.compute_worker", str(example_repository()), str(threads), device
    return Worker(*module_command(*command))


def example_repository() -> Path:
    """Returns the directory of the example programs."""
    return _runfile("slipway/examples/server.repository/mlp/1").parents[1]


def _runfile(path: str) -> Path:
    location = _runfiles().Rlocation(path)
    assert location is not None, path
    return Path(location)


def _runfiles() -> Runfiles:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    return runfiles


def _tree(root: int) -> list[int]:
    """Returns the numbers of a process and all below it."""
    found, waiting = [], [root]
    while waiting:
        number = waiting.pop()
        found.append(number)
        for tasks in Path(f"/proc/{number}/task").glob("*/children"):
            try:
                waiting += map(int, tasks.read_text().split())
            except OSError:
                continue  # a thread that has ended
    return found


def _resident_size(number: int) -> int:
    # Not smaps_rollup, for which Linux goes through all of the process's pages, and keeps it from
    # having new ones meanwhile.
    try:
        pages = int(Path(f"/proc/{number}/statm").read_text().split()[1])
    except OSError:
        return 0  # a process that has ended
    return pages * resource.getpagesize()
