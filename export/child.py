"""Runs an export in a process of its own, and says what became of it."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NoReturn

__all__ = ["run_in_child"]

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>

# Short beside the quickest export.
_POLL_SECONDS = 0.005

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}


def run_in_child(
    export: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    log: IO[bytes] | None = None,
    *,
    private: Sequence[int] = (),
    is_cancelled: Callable[[float], bool] | None = None,
) -> int:
    """Runs an export in a child process, and returns its exit status: 0 only if it came to its end.

    What the child leaves behind is ended and deleted: processes, and files in its temporary
    folder.

    Args:
      export: takes the arguments and returns an exit status.
      arguments: `@FILE` stands for the lines of a file.
      log: where to everything that is printed goes, and how the child ended if it did not come to
        its end; None: to this process's own streams.
      private: descriptors that the child does not get.
      is_cancelled: waits for so many seconds at most, and returns whether the child is to be ended;
        None: it never is.
    """
    ending, finished = os.pipe()
    os.set_blocking(ending, False)
    with tempfile.TemporaryDirectory(prefix="export.", ignore_cleanup_errors=True) as folder:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            for descriptor in (*private, ending):
                os.close(descriptor)
            _become_child(export, arguments, log, parent, folder, finished)
        try:
            # The child is not reaped yet, so that its number is still that of its group.
            if is_cancelled is None:
                os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            else:
                while not (_has_ended(child) or is_cancelled(_POLL_SECONDS)):
                    pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.close(finished)
    with contextlib.closing(os.fdopen(ending, "rb", buffering=0)) as pipe:
        # None: a process that is not of the child's group holds the other end.
        came_to_its_end = bool(pipe.read(1))
    if not came_to_its_end:
        message = _ending(status)
        if log is None:
            print(message, file=sys.stderr)
        else:
            log.seek(0, os.SEEK_END)
            log.write(f"{message}\n".encode())
            log.flush()
        return status if status > 0 else 1
    return status


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _ending(status: int) -> str:
    """Returns how an export ended that did not come to its end, and what to do."""
    if status >= 0:
        return (
            f"the export was cut short: the model, or a library that it calls, ended its process "
            f"with exit status {status}, as sys.exit and os._exit do\n"
            "  what to do: raise an error where it does that"
        )
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"the export was ended by signal {-status}\n  what to do: find out who sent it"
    text = f"the export was ended by signal {-status} ({number.name})"
    if number == signal.SIGKILL:
        return (
            f"{text}, which is what happens when memory runs out\n"
            "  what to do: export fewer models at once (--worker_max_instances=TorchExport=1, or "
            "fewer --jobs), make a large model under torch.device('meta') and give torch_export "
            "its weights, or give the machine more memory"
        )
    if number in _CRASHES:
        return (
            f"{text}: native code that the model calls crashed\n"
            "  what to do: see above which line of Python called it, if that is known; deep "
            "recursion is a frequent cause, operators of one's own another"
        )
    return f"{text}\n  what to do: find out who sent it; the exporter itself never does"


def _become_child(
    export: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    log: IO[bytes] | None,
    parent: int,
    folder: str,
    finished: int,
) -> NoReturn:
    """Runs an export in this process, and ends it; on `finished` says that it was not cut short."""
    status = 1
    try:
        os.setpgid(0, 0)
        _die_with(parent)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if log is not None:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        # Whatever the model reads from standard input, requests are not for it.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        os.environ["TMPDIR"] = folder
        tempfile.tempdir = None
        faulthandler.enable(file=2)
        status = export(list(_expanded(arguments)))
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(finished, b".")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os.write(finished, b".")
    finally:
        with contextlib.suppress(BaseException):  # Whatever a model put in their place.
            sys.stdout.flush()
            sys.stderr.flush()
        # Not sys.exit: what the parent registered for its own end is none of the child's business,
        # and no thread of the model holds up the end.
        os._exit(status)


def _die_with(parent: int) -> None:
    """Has this process killed when its parent ends, and before the parent when memory runs out."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with contextlib.suppress(OSError):  # A sandbox may not have it; it is a preference.
        Path("/proc/self/oom_score_adj").write_text("500")


def _expanded(arguments: Sequence[str]) -> Iterator[str]:
    """Yields arguments, those of parameter files in the files' place."""
    for argument in arguments:
        if argument.startswith("@"):
            with open(argument[1:], encoding="utf-8") as file:
                yield from file.read().splitlines()
        else:
            yield argument
