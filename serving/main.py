"""The command line of the server."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from slipway.serving.errors import StartupError
from slipway.serving.versions import VersionPolicy

__all__ = ["main"]

_LOGGER = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT, and returns the process's exit code.

    0: stopped when asked to, with every request answered. 1: it failed. 2: the command line, or the
    repository that it names, must change.
    """
    options = _parse(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        return _serve(options)
    except StartupError as error:
        print(f"slipway: error: {error}", file=sys.stderr)
        return error.exit_code


def _serve(options: argparse.Namespace) -> int:
    stop = _stop_event()
    failed = threading.Event()

    # The threads of OpenMP would otherwise spin while they have nothing to do, on processors that
    # the thread which receives requests needs. It is read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Whoever waits for the interpreter lock gets it after this. The thread that receives requests
    # needs it for microseconds, often, and has to refuse them at once when there are too many.
    sys.setswitchinterval(0.001)

    # These import torch, which takes longer than to refuse a wrong flag.
    import torch

    from slipway.program.custom_ops import CustomOpsError, load_custom_ops
    from slipway.serving.control import ControlMode
    from slipway.serving.devices import resolve_device
    from slipway.serving.loader import Loader
    from slipway.serving.model import Environment
    from slipway.serving.repository import Repository
    from slipway.serving.scheduler import MemoryBudget, SchedulingOptions
    from slipway.serving.server import InferenceServer
    from slipway.serving.shared_memory import SharedMemoryRegions

    def on_device_failure() -> None:
        failed.set()
        stop.set()

    device = resolve_device(options.device)
    try:
        custom_ops = load_custom_ops(options.custom_ops)
    except CustomOpsError as error:
        raise StartupError(str(error), exit_code=2) from error
    torch.set_num_threads(options.threads or max(1, _processors() // options.instances))
    mode = ControlMode(options.model_control)
    repository = Repository(
        _absolute(options.repository),
        default_policy=options.version_policy,
        only=options.load_model if mode is ControlMode.EXPLICIT else None,
    )
    loader = Loader(
        device,
        Environment(
            SchedulingOptions(
                instances=options.instances,
                max_batch_size=options.max_batch_size,
                batch_delay=options.batch_delay_ms / 1000,
                max_queue_requests=options.max_queue_requests,
                max_queue_bytes=options.max_queue_bytes,
            ),
            MemoryBudget(options.max_request_bytes),
            on_device_failure,
        ),
        custom_ops=custom_ops,
        verification=options.verify,
        snapshot=mode is not ControlMode.FIXED,
        swaps=options.when_memory_is_short == "swap",
    )
    shared_memory = SharedMemoryRegions() if options.allow_client_shared_memory else None
    server = InferenceServer(repository, loader, mode, options.poll_seconds, shared_memory)
    address = server.start(options.host, options.port)
    count = server.load(stop.is_set)
    if count or (mode is ControlMode.EXPLICIT and not stop.is_set()):
        print(f"slipway: serving {count} programs at {address}", flush=True)
        stop.wait()
    elif not stop.is_set():
        server.drain(0)
        raise StartupError(
            "no program of the repository could be loaded; the reasons are above", exit_code=1
        )
    _LOGGER.info("draining for at most %g seconds", options.grace_seconds)
    if not server.drain(options.grace_seconds):
        _LOGGER.error("requests were still running after %g seconds", options.grace_seconds)
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


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="server", description="Serves programs over the Open Inference Protocol (gRPC)."
    )
    parser.add_argument(
        "--repository",
        required=True,
        type=Path,
        metavar="DIR",
        help="a directory with MODEL/VERSION/program.pb below it",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="where to listen (default: %(default)s)"
    )
    parser.add_argument(
        "--port", default=8001, type=_port, help="0 for any that is free (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda:N, or auto (default: %(default)s)"
    )
    parser.add_argument(
        "--custom-ops",
        action="append",
        default=[],
        metavar="MODULE",
        help="a Python module that registers operators which programs may call; repeatable",
    )
    repository = parser.add_argument_group("the repository")
    repository.add_argument(
        "--version-policy",
        default=VersionPolicy(),
        type=_version_policy,
        metavar="POLICY",
        help="which versions of a model are served: all, latest:N, or versions as in 3,5 "
        "(default: %(default)s)",
    )
    repository.add_argument(
        "--model-control",
        default="fixed",
        choices=["fixed", "poll", "explicit"],
        help="whether what is served follows the repository: never, by looking again and again, or "
        "when RepositoryModelLoad and RepositoryModelUnload ask for it (default: %(default)s)",
    )
    repository.add_argument(
        "--poll-seconds",
        default=5.0,
        type=_seconds,
        metavar="S",
        help="between two looks, with --model-control=poll (default: %(default)g)",
    )
    repository.add_argument(
        "--load-model",
        action="append",
        default=[],
        metavar="NAME",
        help="a model to load at the start, with --model-control=explicit; repeatable",
    )
    repository.add_argument(
        "--when-memory-is-short",
        default="refuse",
        choices=["refuse", "swap"],
        help="what becomes of a version that does not fit beside the one that it replaces: it is "
        "not loaded, or takes its place with a gap in between (default: %(default)s)",
    )
    parser.add_argument(
        "--verify",
        default="full",
        choices=["full", "sizes"],
        help="what of the weights is compared with what was written: all bytes, or, of very large "
        "weights, their sizes (default: %(default)s)",
    )
    scheduling = parser.add_argument_group("how requests are run, for each model")
    scheduling.add_argument(
        "--instances",
        default=1,
        type=_positive,
        metavar="N",
        help="batches that run at the same time; they share the weights (default: %(default)s)",
    )
    scheduling.add_argument(
        "--threads",
        default=0,
        type=_count,
        metavar="N",
        help="processor threads of an instance (default: the processors, divided by --instances)",
    )
    scheduling.add_argument(
        "--max-batch-size",
        default=64,
        type=_positive,
        metavar="ROWS",
        help="rows of a batch of several requests, at most (default: %(default)s)",
    )
    scheduling.add_argument(
        "--batch-delay-ms",
        default=0.0,
        type=_milliseconds,
        metavar="MS",
        help="how long a request may wait for others after a batch; it never does while an "
        "instance is idle (default: %(default)g)",
    )
    scheduling.add_argument(
        "--max-queue-requests",
        default=1024,
        type=_positive,
        metavar="N",
        help="requests that wait, at most; more are refused at once (default: %(default)s)",
    )
    scheduling.add_argument(
        "--max-queue-bytes",
        default=2**30,
        type=_positive,
        metavar="BYTES",
        help="what they hold, at most (default: %(default)s)",
    )
    parser.add_argument(
        "--max-request-bytes",
        default=2**32,
        type=_positive,
        metavar="BYTES",
        help="what all requests in the server hold, at most (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-client-shared-memory",
        action="store_true",
        help="let clients of this machine register files of /dev/shm, owned by the server's user, "
        "that tensors are read from and written to",
    )
    parser.add_argument(
        "--grace-seconds",
        default=30.0,
        type=_seconds,
        metavar="S",
        help="how long requests may take to finish after SIGTERM (default: %(default)g)",
    )
    parser.add_argument(
        "--log-level",
        default="info",
        choices=["debug", "info", "warning", "error"],
        help="of what goes to stderr (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def _absolute(directory: Path) -> Path:
    # `bazel run` changes the directory and says here where the user was.
    return Path(os.environ.get("BUILD_WORKING_DIRECTORY", "")).joinpath(directory).absolute()


def _port(text: str) -> int:
    return _bounded(text, int(text), 0, 65535)


def _version_policy(text: str) -> VersionPolicy:
    try:
        return VersionPolicy.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    return _bounded(text, int(text), 1, 2**40)


def _count(text: str) -> int:
    return _bounded(text, int(text), 0, 1024)


def _milliseconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 60_000:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..60000")
    return value


def _processors() -> int:
    # Those that this process may use, which a container may have bounded.
    return len(os.sched_getaffinity(0))


def _bounded(text: str, value: int, minimum: int, maximum: int) -> int:
    if not minimum <= value <= maximum:
        raise argparse.ArgumentTypeError(f"{text} is not in {minimum}..{maximum}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..86400")
    return value
