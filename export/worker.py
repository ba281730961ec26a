"""The exporter as a persistent worker of Bazel: torch is imported once, and each export forks.

The protocol is one JSON object on a line for each request and each answer
(https://bazel.build/remote/creating#work-requests). A request is served by a child process that
ends with it, so that nothing of one export reaches the next: no module, no random state, no
registered operator, no temporary file, no process. A child that dies fails its own target alone,
and one whose request is cancelled is ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import IO, Any

from slipway.export.child import run_in_child

__all__ = ["serve"]

_LOG_BYTES = 100_000
"""How much of a log is kept, of its beginning and of its end each."""


def serve(export: Callable[[Sequence[str]], int], requests: int, answers: IO[str]) -> None:
    """Answers requests until there are no more.

    Args:
      export: takes the arguments of a request and returns its exit status.
      requests: the descriptor that they are read from, one JSON object on a line.
      answers: likewise. Nothing else may write there.
    """
    # So that the export under way ends with the worker, which Bazel ends when a build is cancelled.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    reader = _Reader(requests)
    while (request := reader.next()) is not None:
        # Of a request that was answered while Bazel cancelled it.
        if request.get("cancel"):
            continue
        answers.write(json.dumps(_answer(export, request, reader, answers.fileno())) + "\n")
        answers.flush()


def _answer(
    export: Callable[[Sequence[str]], int], request: dict[str, Any], reader: _Reader, answers: int
) -> dict[str, Any]:
    number = request.get("requestId", 0)
    was_cancelled = False

    def is_cancelled(seconds: float) -> bool:
        nonlocal was_cancelled
        was_cancelled = reader.cancels(number, seconds)
        return was_cancelled

    with tempfile.TemporaryFile() as log:
        status = run_in_child(
            export,
            request.get("arguments", []),
            log,
            private=[answers],
            is_cancelled=is_cancelled,
        )
        if was_cancelled:
            return {"requestId": number, "wasCancelled": True}
        return {"exitCode": status, "output": _text(log), "requestId": number}


class _Reader:
    """Reads requests as they come; a file object may hold back one that select() then misses."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unread = b""

    def next(self) -> dict[str, Any] | None:
        """Returns the next request, or None after the last."""
        while b"\n" not in self._unread:
            read = os.read(self._descriptor, 1 << 16)
            if not read:
                return None
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        request: dict[str, Any] = json.loads(line)
        return request

    def cancels(self, number: int, seconds: float) -> bool:
        """Waits for some seconds at most, and returns whether a request is cancelled.

        Raises:
          SystemExit: nobody is left to be answered.
        """
        has_come = b"\n" in self._unread or select.select([self._descriptor], [], [], seconds)[0]
        if not has_come:
            return False
        message = self.next()
        if message is None:
            sys.exit()
        return bool(message.get("cancel")) and message.get("requestId", 0) == number


def _text(log: IO[bytes]) -> str:
    """Returns what a log says, the middle left out if it is very long."""
    size = log.seek(0, 2)
    left_out = size - 2 * _LOG_BYTES
    log.seek(0)
    if left_out <= 0:
        return log.read().decode(errors="replace")
    start = log.read(_LOG_BYTES).decode(errors="replace")
    log.seek(-_LOG_BYTES, 2)
    end = log.read().decode(errors="replace")
    return f"{start}\n… {left_out} bytes left out …\n{end}"
