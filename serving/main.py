"""The server as a process: from its configuration to its exit code."""

from __future__ import annotations

import logging
import os
import resource
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slipway.serving.checking import check
from slipway.serving.command_line import parse
from slipway.serving.configuration import Configuration
from slipway.serving.configuration_file import to_toml
from slipway.serving.errors import StartupError
from slipway.serving.limits import address_warning
from slipway.serving.logs import LogControl, LogFormat
from slipway.serving.security import Security
from slipway.serving.signals import let_signals_end_it, stop_event
from slipway.serving.supervisor import Supervisor, follow_parent, reserve_port, worker_command

if TYPE_CHECKING:
    from slipway.serving.credentials import TlsFiles
    from slipway.serving.server import InferenceServer

__all__ = ["main"]

_LOGGER = logging.getLogger(__name__)

_DEVICE_FAILED = 3

_METRICS_PORT = 8002


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is stopped by a signal, and returns the process's exit code.

    0: stopped when asked to, with every request answered, or nothing is wrong with what `--check`
    looked at. 1: it failed. 2: the configuration, or what it names, must change. 3: a device
    failed, which only a new process heals.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    settings = None
    try:
        line = parse(arguments)
        settings = line.configuration
        log = LogControl(settings.logging.level, LogFormat(settings.logging.format))
        if line.check:
            let_signals_end_it()
            check(line)
            failure = _print(to_toml(settings))
            # Of a closed pipe, whoever read the settings has read enough.
            if failure is not None and not isinstance(failure, BrokenPipeError):
                raise StartupError(
                    f"cannot write to standard output: {failure.strerror}", exit_code=1
                )
            return 0
        if line.is_worker or not settings.server.is_supervised:
            return _serve(settings, line.is_worker, log)
        return _supervise(settings, arguments, log)
    except StartupError as error:
        if settings is not None and settings.logging.format == LogFormat.JSON.value:
            _LOGGER.critical("%s", error)
        else:
            print(f"slipway: error: {error}", file=sys.stderr)
        return error.exit_code


def _supervise(settings: Configuration, arguments: Sequence[str], log: LogControl) -> int:
    stop = stop_event(log)
    server = settings.server
    if not server.port and settings.monitoring.metrics_port is None:
        # The workers are told a port, and would think that the one for metrics is fixed as well.
        arguments = [*arguments, "--metrics-port=0"]
    with reserve_port(server.host, server.port) as reserved:
        command = worker_command(arguments, reserved.getsockname()[1])
        supervisor = Supervisor(
            command, server.processes, server.grace_seconds, server.silence_seconds
        )
        return supervisor.run(stop)


def _serve(settings: Configuration, is_worker: bool, log: LogControl) -> int:
    stop = stop_event(log)
    if is_worker:
        follow_parent(stop)
    _raise_descriptor_limit()
    warning = address_warning()
    if warning:
        _LOGGER.warning("%s", warning)
    failed = threading.Event()

    # The threads of OpenMP would otherwise spin for milliseconds when they have nothing to do, on
    # processors that the thread which receives requests needs. If they did not spin at all, each
    # operator would wait for one to wake: a ResNet took 3.5 times as long. This is some
    # microseconds, and is read when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Whoever waits for the interpreter lock gets it after this. The thread that receives requests
    # needs it for microseconds, often, and has to refuse them at once when there are too many.
    sys.setswitchinterval(0.0002)

    def on_device_failure() -> None:
        failed.set()
        stop.set()

    security = Security.of(settings)
    # This imports torch, which takes longer than to refuse a wrong setting.
    from slipway.serving.assembly import make_server
    from slipway.serving.processors import keep_freed_memory

    keep_freed_memory()
    server = make_server(
        settings, security.authorizer, on_device_failure, log, shares_port=is_worker
    )
    host, port, credentials = settings.server.host, settings.server.port, security.credentials
    if settings.server.processes > 1:
        # Clients are not to reach one of them that is loading, while others could answer.
        _start_monitoring(server, settings, security.tls)
        count = server.load(stop.is_set)
        address = server.start(host, port, credentials)
    else:
        address = server.start(host, port, credentials)
        _start_monitoring(server, settings, security.tls)
        count = server.load(stop.is_set)
    if count or (settings.repository.model_control == "explicit" and not stop.is_set()):
        _announce(f"slipway: serving {count} programs at {address}")
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


def _announce(text: str) -> None:
    """Writes that it is ready to standard output, or to the log where that takes nothing."""
    error = _print(f"{text}\n")
    if error is not None:
        _LOGGER.warning("cannot write to standard output: %s; it was %r", error.strerror, text)


def _print(text: str) -> OSError | None:
    """Writes to standard output, and returns why that takes nothing, if it does not."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        # Python would try again when the process ends, and exit with 120.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return error
    return None


def _start_monitoring(
    server: InferenceServer, settings: Configuration, tls: TlsFiles | None
) -> None:
    if not settings.monitoring.metrics:
        return
    given = settings.monitoring.metrics_port
    port = given
    if port is None:
        port = _METRICS_PORT if settings.server.port else 0
    # Each of several processes has numbers of its own, and so a port, from this one on. The one for
    # requests could be taken too, as long as no process listens there yet.
    count = settings.server.processes
    ports = [0]
    if port:
        others = [each for each in range(port, port + count + 1) if each != settings.server.port]
        ports = others[:count]
    if given is None and port:
        # Nobody asked for these: a second server on the host takes any other.
        ports.append(0)
    for candidate in ports:
        try:
            address = server.start_monitoring(settings.server.host, candidate, tls)
        except StartupError:
            if candidate == ports[-1]:
                raise
        else:
            level = logging.WARNING if port and not candidate else logging.INFO
            _LOGGER.log(level, "metrics and the status page are at http://%s", address)
            return


def _raise_descriptor_limit() -> None:
    """Lets this process have as many files and connections as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
