"""A process that keeps server processes running.

It starts them, restarts one that ends, after a pause that doubles each time, and stops them when it
is stopped. One that gives no sign of life is killed, and then started again like others. With
several, the system spreads connections over them: all listen on one port (SO_REUSEPORT), and what
they map of the repository lies in memory once.

It imports no torch, opens no gRPC and serves nothing, so there is little that could end it; should
it be killed, its workers drain and end.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from slipway.serving.errors import StartupError

__all__ = ["READY", "Supervisor", "follow_parent", "reserve_port", "worker_command"]

_LOGGER = logging.getLogger(__name__)

READY = "slipway: serving "
"""How the line begins that a server prints when it is ready."""

_FINAL = 2
"""The exit code of a server that cannot be helped by starting it again."""

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_WORKED = 60.0
"""Seconds after which a worker that ends is started again as soon as the first time."""

_MARGIN = 10.0
"""Seconds that workers get to end, beyond their grace period."""

_LOOK = 1.0
"""Seconds between two looks for signs of life of a worker, which gives two in that time."""


@dataclass(slots=True)
class _Worker:
    """One of the processes, through all its lives.

    Attributes:
      index: from 0.
      process: the present one; None while it waits to be started again.
      link: to its standard input, over which it gives signs of life.
      started: when it was, by the monotonic clock.
      pause: how long to wait before the next start, in seconds.
      due: when to start it, by the same clock.
      is_ready: whether it said so.
    """

    index: int
    process: subprocess.Popen[str] | None = None
    link: socket.socket | None = None
    started: float = 0.0
    pause: float = _FIRST_PAUSE
    due: float = 0.0
    is_ready: bool = False


@dataclass(slots=True)
class Supervisor:
    """Runs a command in several processes.

    Attributes:
      command: of each of them; it is to end when its standard input does.
      count: how many there are.
      grace_seconds: how long each may take to end after SIGTERM.
      silence_seconds: how long one that has called `follow_parent` may give no sign of life before
        it is killed; 0 for as long as it likes.
    """

    command: Sequence[str]
    count: int
    grace_seconds: float
    silence_seconds: float = 0.0
    _events: queue.SimpleQueue[tuple[str, _Worker | None, str]] = field(
        default_factory=queue.SimpleQueue
    )
    _was_ready: bool = False

    def run(self, stop: threading.Event) -> int:
        """Returns the exit code: 0 once it was stopped and all workers ended in order.

        Args:
          stop: ends it, when set.
        """
        workers = [_Worker(index) for index in range(self.count)]
        self._watch(stop)
        while True:
            for worker in workers:
                if worker.process is None and worker.due <= time.monotonic():
                    self._start(worker)
            event, about, line = self._next(workers)
            if event == "stop":
                return self._stop(workers)
            if about is None or about.process is None:
                continue
            if event == "ready":
                about.is_ready = True
                if not self._was_ready and all(worker.is_ready for worker in workers):
                    self._was_ready = True
                    _pass_on(line)
            elif event == "end":
                code = about.process.wait()
                if code == _FINAL and not any(worker.is_ready for worker in workers):
                    about.process = None
                    self._stop(workers)
                    return code
                self._schedule(about, code)

    def _watch(self, stop: threading.Event) -> None:
        def wait() -> None:
            stop.wait()
            self._events.put(("stop", None, ""))

        threading.Thread(target=wait, name="stop", daemon=True).start()

    def _next(self, workers: Sequence[_Worker]) -> tuple[str, _Worker | None, str]:
        """Returns what happens next, or an empty event when a worker is to be started."""
        due = [worker.due for worker in workers if worker.process is None]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return "", None, ""

    def _start(self, worker: _Worker) -> None:
        worker.link, its_end = socket.socketpair()
        with its_end:
            worker.process = subprocess.Popen(
                self.command,
                stdin=its_end.fileno(),
                stdout=subprocess.PIPE,
                text=True,
                errors="replace",  # libraries of operators may write anything
                # A key that interrupts this process must not reach it twice.
                start_new_session=True,
            )
        worker.started, worker.is_ready = time.monotonic(), False
        _LOGGER.info("worker %d is process %d", worker.index, worker.process.pid)
        reader = threading.Thread(
            target=self._read, args=(worker, worker.process), name="worker output", daemon=True
        )
        reader.start()
        listener = threading.Thread(
            target=self._listen,
            args=(worker, worker.process, worker.link),
            name="worker life",
            daemon=True,
        )
        listener.start()

    def _listen(self, worker: _Worker, process: subprocess.Popen[str], link: socket.socket) -> None:
        """Kills a worker that has given signs of life, and then gives none for too long."""
        # Looks in vain are counted rather than seconds: what stops all processes alike, such as a
        # container that is paused, is no fault of the worker's.
        allowed = math.ceil(self.silence_seconds / _LOOK) or math.inf
        in_vain, has_begun = 0, False
        with link, contextlib.suppress(OSError):
            link.settimeout(_LOOK)
            while in_vain < allowed:
                try:
                    if not link.recv(1024):
                        return
                    in_vain, has_begun = 0, True
                except TimeoutError:
                    in_vain += has_begun
            _LOGGER.error(
                "worker %d, process %d, has given no sign of life for %g seconds, and is killed",
                worker.index,
                process.pid,
                self.silence_seconds,
            )
            process.kill()

    def _read(self, worker: _Worker, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.startswith(READY):
                    self._events.put(("ready", worker, line))
                else:
                    _pass_on(line)
        process.wait()
        self._events.put(("end", worker, ""))

    def _schedule(self, worker: _Worker, code: int) -> None:
        """Has a worker that ended started again after a pause."""
        _end_input(worker)
        worker.process = None
        if time.monotonic() - worker.started > _WORKED:
            worker.pause = _FIRST_PAUSE
        worker.due = time.monotonic() + worker.pause
        _LOGGER.error(
            "worker %d ended with %s; it is started again in %g seconds",
            worker.index,
            _ending(code),
            worker.pause,
        )
        worker.is_ready = False
        worker.pause = min(2 * worker.pause, _LONGEST_PAUSE)

    def _stop(self, workers: Sequence[_Worker]) -> int:
        running = [worker for worker in workers if worker.process is not None]
        for worker in running:
            assert worker.process is not None
            worker.process.terminate()
        until = time.monotonic() + self.grace_seconds + _MARGIN
        codes = []
        for worker in running:
            assert worker.process is not None
            try:
                code = worker.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                _LOGGER.error("worker %d does not end, and is killed", worker.index)
                worker.process.kill()
                code = worker.process.wait()
            _end_input(worker)
            codes.append(code if code >= 0 else 1)
        return max(codes, default=0)


def reserve_port(host: str, port: int) -> socket.socket:
    """Returns a socket that keeps a port for the workers, and takes no connections itself.

    Args:
      host: a name or address of this machine.
      port: 0 for any that is free.

    Raises:
      StartupError: the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if port:
            # With SO_REUSEPORT it would be shared with another server in silence.
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        reserved = socket.socket(family, kind)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(address)
    except OSError as error:
        raise StartupError.of_address(host, port, error) from error
    return reserved


def worker_command(arguments: Sequence[str], port: int) -> list[str]:
    """Returns the command of a worker.

    Args:
      arguments: of the server's command line.
      port: where to listen.
    """
    # Paths that this process got from wherever; the worker gets them from the environment.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    module = "slipway.serving.server_main"
    return [sys.executable, "-P", "-m", module, *arguments, f"--port={port}", "--worker"]


def follow_parent(stop: threading.Event) -> None:
    """Sets `stop` when the parent is gone, which holds the other end of the standard input.

    From now on, it gets signs of life.
    """

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        stop.set()

    def beat() -> None:
        # A thread of Python's: it is as silent as all others where one keeps the interpreter lock.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(0)) as link:
            while link.send(b"."):
                time.sleep(_LOOK / 2)

    threading.Thread(target=wait, name="parent", daemon=True).start()
    threading.Thread(target=beat, name="life", daemon=True).start()


def _pass_on(line: str) -> None:
    """Prints a line of a worker; that nobody reads it any more is no reason to end."""
    with contextlib.suppress(OSError, UnicodeError):
        print(line, end="", flush=True)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # of a real-time signal
        return f"signal {-code}"


def _end_input(worker: _Worker) -> None:
    assert worker.link is not None
    # The thread that reads from it closes it.
    with contextlib.suppress(OSError):  # it is closed already
        worker.link.shutdown(socket.SHUT_RDWR)
