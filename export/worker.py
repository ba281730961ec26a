"""The exporter as a persistent worker of Bazel: torch is imported once, and each export forks.

The protocol is one JSON object on a line for each request and each answer
(https://bazel.build/remote/creating#work-requests). A request is served by a child process that
ends with it, so that nothing of one export reaches the next: no module, no random state, no
registered operator, no temporary file, no process. A child that dies fails its own target alone.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import IO

from slipway.export.child import run_in_child

__all__ = ["serve"]

_LOG_BYTES = 100_000
"""How much of a log is kept, of its beginning and of its end each."""


def serve(export: Callable[[Sequence[str]], int], requests: IO[str], answers: IO[str]) -> None:
    """Answers requests until there are no more.

    Args:
      export: takes the arguments of a request and returns its exit status.
      requests: one JSON object on a line.
      answers: likewise. Nothing else may write there.
    """
    # So that the export under way ends with the worker, which Bazel ends when a build is cancelled.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for line in requests:
        if not line.strip():
            continue
        request = json.loads(line)
        with tempfile.TemporaryFile() as log:
            status = run_in_child(
                export, request.get("arguments", []), log, private=[answers.fileno()]
            )
            answer = {
                "exitCode": status,
                "output": _text(log),
                "requestId": request.get("requestId", 0),
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


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
