"""The server as a process: from its configuration to its exit code."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence

from slipway.serving.checking import check
from slipway.serving.command_line import parse
from slipway.serving.configuration import Configuration, ServerSettings
from slipway.serving.configuration_file import to_toml
from slipway.serving.errors import StartupError
from slipway.serving.security import Security
from slipway.serving.supervisor import Supervisor, follow_parent, reserve_port, worker_command

__all__ = ["main"]

_LOGGER = logging.getLogger(__name__)

_DEVICE_FAILED = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT, and returns the process's exit code.

    0: stopped when asked to, with every request answered, or nothing is wrong with what `--check`
    looked at. 1: it failed. 2: the configuration, or what it names, must change. 3: a device
    failed, which only a new process heals.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    try:
        line = parse(arguments)
        settings = line.configuration
        logging.basicConfig(
            stream=sys.stderr,
            level=settings.logging.level.upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        )
        if line.check:
            check(line)
            print(to_toml(settings), end="")
            return 0
        if line.is_worker or not settings.server.is_supervised:
            return _serve(settings, line.is_worker)
        return _supervise(settings.server, arguments)
    except StartupError as error:
        print(f"slipway: error: {error}", file=sys.stderr)
        return error.exit_code


def _supervise(settings: ServerSettings, arguments: Sequence[str]) -> int:
    stop = _stop_event()
    with reserve_port(settings.host, settings.port) as reserved:
        command = worker_command(arguments, reserved.getsockname()[1])
        return Supervisor(command, settings.processes, settings.grace_seconds).run(stop)


def _serve(settings: Configuration, is_worker: bool) -> int:
    stop = _stop_event()
    if is_worker:
        follow_parent(stop)
    _raise_descriptor_limit()
    failed = threading.Event()

    # The threads of OpenMP would otherwise spin while they have nothing to do, on processors that
    # the thread which receives requests needs. It is read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Whoever waits for the interpreter lock gets it after this. The thread that receives requests
    # needs it for microseconds, often, and has to refuse them at once when there are too many.
    sys.setswitchinterval(0.001)

    def on_device_failure() -> None:
        failed.set()
        stop.set()

    security = Security.of(settings)
    # This imports torch, which takes longer than to refuse a wrong setting.
    from slipway.serving.assembly import make_server

    server = make_server(settings, security.authorizer, on_device_failure, shares_port=is_worker)
    host, port, credentials = settings.server.host, settings.server.port, security.credentials
    if settings.server.processes > 1:
        # Clients are not to reach one of them that is loading, while others could answer.
        count = server.load(stop.is_set)
        address = server.start(host, port, credentials)
    else:
        address = server.start(host, port, credentials)
        count = server.load(stop.is_set)
    if count or (settings.repository.model_control == "explicit" and not stop.is_set()):
        print(f"slipway: serving {count} programs at {address}", flush=True)
        stop.wait()
    elif not stop.is_set():
        server.drain(0)
        raise StartupError(
            "no program of the repository could be loaded; the reasons are above", exit_code=1
        )
    grace = settings.server.grace_seconds
    _LOGGER.info("draining for at most %g seconds", grace)
    code = _DEVICE_FAILED if failed.is_set() else 0
    is_drained = server.drain(grace)
    if not is_drained:
        _LOGGER.error("requests were still running after %g seconds", grace)
        code = code or 1
    if not is_drained or server.is_busy:
        logging.shutdown()
        # A normal exit would wait for them.
        os._exit(code)
    return code


def _raise_descriptor_limit() -> None:
    """Lets this process have as many files and connections as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _stop_event() -> threading.Event:
    """Returns an event that SIGTERM and SIGINT set; a second signal ends the process at once.

    Call it before there are other threads.
    """
    # Python runs signal handlers in its main thread, but a signal that another thread is given does
    # not wake a main thread that waits. So all threads block signals, and one takes them.
    numbers = {signal.SIGTERM, signal.SIGINT}
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    stop = threading.Event()

    def take() -> None:
        signal.sigwait(numbers)
        stop.set()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        threading.Event().wait()  # the thread that the second signal is given to

    threading.Thread(target=take, name="signals", daemon=True).start()
    return stop
