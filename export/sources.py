"""Finds the user's own lines among the frames of torch, the standard library and Slipway."""

from __future__ import annotations

import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType, TracebackType

import torch

from slipway.export.errors import SourceLine

__all__ = [
    "called_by_user_line",
    "innermost_user_line",
    "user_line_of_exception",
    "user_line_of_node",
]

_TORCH = str(Path(torch.__file__).parent) + os.sep
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
_OURS = tuple(str(Path(__file__).parent.parent / room) + os.sep for room in ("export", "program"))
_TESTS = "_test.py"

_FRAME = re.compile(r'\s*File "([^"]+)", line (\d+)')


def _is_user_file(name: str) -> bool:
    if name.startswith(("<", _TORCH, _STANDARD_LIBRARY)):
        return False
    return not name.startswith(_OURS) or name.endswith(_TESTS)


def _relative(name: str) -> str:
    """Returns a file's path below the workspace, so that no message or artifact names a machine."""
    path = Path(name).absolute()
    roots = [Path.cwd(), *(Path(entry).absolute() for entry in sys.path if entry)]
    inside = [path.relative_to(root) for root in roots if path.is_relative_to(root)]
    return str(max(inside, key=lambda item: len(item.parts))) if inside else path.name


def _source_line(name: str, line: int) -> SourceLine:
    return SourceLine(_relative(name), line, linecache.getline(name, line).strip())


def innermost_user_line(frame: FrameType | None) -> SourceLine | None:
    """Returns the innermost line of the user's code on a stack, if any.

    Args:
      frame: where to start, going outwards.
    """
    while frame is not None:
        if _is_user_file(frame.f_code.co_filename):
            return _source_line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def user_line_of_exception(error: BaseException) -> SourceLine | None:
    """Returns the innermost line of the user's code that an exception came through, if any."""
    found = None
    for frame, line in _frames(error.__traceback__):
        if _is_user_file(frame.f_code.co_filename):
            found = _source_line(frame.f_code.co_filename, line)
    return found


def called_by_user_line(error: BaseException) -> str | None:
    """Returns the name of the function that the innermost line of the user's code had called."""
    called = None
    last_is_user = False
    for frame, _ in _frames(error.__traceback__):
        is_user = _is_user_file(frame.f_code.co_filename)
        if is_user:
            called = None
        elif last_is_user:
            called = frame.f_code.co_name
        last_is_user = is_user
    return called


def _frames(trace: TracebackType | None) -> Iterable[tuple[FrameType, int]]:
    return traceback.walk_tb(trace)


def user_line_of_node(node: torch.fx.Node) -> SourceLine | None:
    """Returns the line of the user's code that a graph's node was traced from, if known."""
    for line in reversed((node.meta.get("stack_trace") or "").splitlines()):
        match = _FRAME.match(line)
        if match and _is_user_file(match[1]):
            return _source_line(match[1], int(match[2]))
    return None
