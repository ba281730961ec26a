"""The exporter as a persistent worker of Bazel: torch is imported once, and each export forks.

The protocol is one JSON object on a line for each request and each answer
(https://bazel.build/remote/creating#work-requests). A request is served by a child process that
ends with it, so that nothing of one export reaches the next: no module, no random state, no
registered operator. A child that dies fails its own target alone.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

__all__ = ["serve"]


def serve(export: Callable[[Sequence[str]], int], requests: IO[str], answers: IO[str]) -> None:
    """Answers requests until there are no more.

    Args:
      export: takes the arguments of a request and returns its exit status.
      requests: one JSON object on a line.
      answers: likewise. Nothing else may write there.
    """
    for line in requests:
        if not line.strip():
            continue
        request = json.loads(line)
        status, output = _run_in_child(export, request.get("arguments", []))
        answer = {
            "exitCode": status,
            "output": output,
            "requestId": request.get("requestId", 0),
        }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _run_in_child(
    export: Callable[[Sequence[str]], int], arguments: Sequence[str]
) -> tuple[int, str]:
    """Returns the exit status of an export, and what it and all that it started printed."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            _become_child(export, arguments, output)
        _, wait_status = os.waitpid(child, 0)
        output.seek(0)
        text = output.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(wait_status)
    if status < 0:
        text += (
            f"the export was ended by signal {-status}"
            + (", which is what happens when memory runs out" if status == -9 else "")
            + "; the worker goes on\n"
        )
        return 1, text
    return status, text


def _become_child(
    export: Callable[[Sequence[str]], int], arguments: Sequence[str], output: IO[Any]
) -> None:
    """Runs an export in this process, and ends it."""
    status = 1
    try:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        # Whatever the model reads from standard input, requests are not for it.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = export(list(_expanded(arguments)))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: what the parent registered for its own end is none of the child's business.
        os._exit(status)


def _expanded(arguments: Sequence[str]) -> Iterator[str]:
    """Yields arguments, those of parameter files in the files' place."""
    for argument in arguments:
        if argument.startswith("@"):
            with open(argument[1:], encoding="utf-8") as file:
                yield from file.read().splitlines()
        else:
            yield argument
