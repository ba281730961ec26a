"""A server that something is done to, and what is asked of it afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from slipway.tests.operations.load import affine_request, infer, open_channel, scale_of
from slipway.tests.operations.repository_changes import Control, make_repository
from slipway.tests.serving.server_process import ServerProcess

__all__ = ["Scene", "running"]


@dataclass(frozen=True, slots=True)
class Scene:
    """A running server.

    Attributes:
      root: its repository, with version 1 of `affine`, `echo` and `power`.
      server: the process.
      control: asks it about its repository.
      log: what it wrote to its standard error.
    """

    root: Path
    server: ServerProcess
    control: Control
    log: Path

    @property
    def address(self) -> str:
        """Returns HOST:PORT."""
        return self.server.address

    @property
    def pid(self) -> int:
        """Returns the process's id."""
        return self.server.process.pid

    def probe(self) -> None:
        """Asks for everything that a server is for, over a new connection.

        Raises:
          AssertionError: an answer is not what it should be.
          grpc.RpcError: there is none.
        """
        assert self.server.process.poll() is None, f"the server ended: {self.end_of_log()}"
        with open_channel(self.address) as channel:
            for index in range(3):
                response = infer(channel, affine_request(f"probe {index}", rows=2))
                scale_of(response, f"probe {index}", rows=2)
            request = health_pb2.HealthCheckRequest(service="affine")
            health = health_pb2_grpc.HealthStub(channel).Check(request, timeout=60)
            assert health.status == health_pb2.HealthCheckResponse.SERVING, health

    def end_of_log(self) -> str:
        """Returns the last lines that it logged."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


@contextlib.contextmanager
def running(
    folder: Path, *flags: str, environment: Mapping[str, str] | None = None
) -> Iterator[Scene]:
    """Yields a server with a repository below `folder`, and ends it."""
    root = folder / "repository"
    make_repository(root)
    path = folder / "server.log"
    with (
        path.open("w") as log,
        ServerProcess(root, flags, environment=environment, log=log) as server,
    ):
        control = Control(server.address)
        yield Scene(root, server, control, path)
        control.close()


def descriptors(pid: int) -> int:
    """Returns how many files and connections a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(pid: int, key: str = "VmRSS") -> int:
    """Returns the bytes of memory that a process holds, or held at most (`VmHWM`)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def children(pid: int) -> Sequence[int]:
    """Returns the ids of a process's children."""
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]
