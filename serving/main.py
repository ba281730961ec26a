"""The server as a process: from its configuration to its exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence

from slipway.serving.checking import check
from slipway.serving.command_line import parse
from slipway.serving.configuration import Configuration
from slipway.serving.configuration_file import to_toml
from slipway.serving.errors import StartupError
from slipway.serving.security import Security

__all__ = ["main"]

_LOGGER = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT, and returns the process's exit code.

    0: stopped when asked to, with every request answered, or nothing is wrong with what `--check`
    looked at. 1: it failed. 2: the configuration, or what it names, must change.
    """
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
        return _serve(settings)
    except StartupError as error:
        print(f"slipway: error: {error}", file=sys.stderr)
        return error.exit_code


def _serve(settings: Configuration) -> int:
    stop = _stop_event()
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

    server = make_server(settings, security.authorizer, on_device_failure)
    address = server.start(settings.server.host, settings.server.port, security.credentials)
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
    if not server.drain(grace):
        _LOGGER.error("requests were still running after %g seconds", grace)
        logging.shutdown()
        # A normal exit would wait for them.
        os._exit(1)
    return 1 if failed.is_set() else 0


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
