"""The server binary as a process of its own."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from runfiles import Runfiles


class ServerProcess:
    """A server on a free port of the loopback, stopped at the end of a `with` block.

    Attributes:
      ready_line: what it printed when it was ready.
      address: HOST:PORT.
      process: for signals.
    """

    def __init__(
        self,
        repository: Path,
        flags: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        log: IO[str] | None = None,
    ) -> None:
        """Starts a server, and returns when it is ready.

        Args:
          repository: what it serves.
          flags: of its command line, beside those for the repository and the port.
          environment: what it has beside what it needs to find its files.
          log: where its standard error goes; None for that of this process.

        Raises:
          RuntimeError: it ended.
        """
        self.process = subprocess.Popen(
            server_command(f"--repository={repository}", "--port=0", *flags),
            env={**server_environment(), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert self.process.stdout is not None
        # Ends without a line if the process does, and that ends if it gets stuck.
        limit = threading.Timer(120, self.process.kill)
        limit.start()
        self.ready_line = self.process.stdout.readline()
        limit.cancel()
        if not self.ready_line:
            raise RuntimeError(f"the server ended with exit code {self.process.wait()}")
        self.address = self.ready_line.split()[-1]

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=60)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def server_command(*flags: str) -> list[str]:
    """Returns the command that starts //serving:server with `flags`."""
    binary = _runfiles().Rlocation("slipway/serving/server")
    assert binary is not None
    return [binary, *flags]


def server_environment() -> dict[str, str]:
    """Returns the environment in which the binary finds its files."""
    environment: dict[str, str] = _runfiles().EnvVars()
    return environment


def _runfiles() -> Runfiles:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    return runfiles
