"""Finds the user's own lines among the frames of torch, the standard library and Slipway."""

from __future__ import annotations

import functools
import importlib.util
import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import torch
from torch._guards import TracingContext
from torch.fx.proxy import TracerBase

from slipway.export.errors import SourceLine

__all__ = [
    "called_by_user_line",
    "innermost_user_line",
    "model_frames",
    "user_line",
    "user_line_of_exception",
    "user_line_of_node",
]


def _folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parent) + os.sep


# Tracing runs through all of these; other packages may hold models.
_LIBRARIES = tuple(_folder_of(package) for package in ("torch", "sympy", "mpmath", "numpy"))
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
_SITE_PACKAGES = os.sep + "site-packages" + os.sep
_OURS = tuple(str(Path(__file__).parent.parent / room) + os.sep for room in ("export", "program"))
_TESTS = "_test.py"
_INTERACTIVE = ("<stdin>", "<ipython-input")

# What torch says of the nodes that it adds by itself.
_NO_FILE = "torch/"

_FRAME = re.compile(r'\s*File "([^"]+)", line (\d+)')


@functools.cache
def _is_user_file(name: str) -> bool:
    # Where Slipway is another repository, Bazel starts OURS/../slipway/export/exporter.py.
    name = os.path.normpath(name)
    if name.startswith((*_LIBRARIES, _NO_FILE)) or (
        name.startswith("<") and not name.startswith(_INTERACTIVE)
    ):
        return False
    if name.startswith(_STANDARD_LIBRARY) and _SITE_PACKAGES not in name:
        return False
    return not name.startswith(_OURS) or name.endswith(_TESTS)


def _relative(name: str) -> str:
    """Returns a file's path below the workspace, so that no message or artifact names a machine."""
    path = Path(name).absolute()
    roots = [Path.cwd(), *(Path(entry).absolute() for entry in sys.path if entry)]
    inside = [path.relative_to(root) for root in roots if path.is_relative_to(root)]
    return str(min(inside, key=lambda item: len(item.parts))) if inside else path.name


def _source_line(name: str, line: int) -> SourceLine:
    return SourceLine(_relative(name), line, linecache.getline(name, line).strip())


def user_line(name: str, line: int) -> SourceLine | None:
    """Returns a line of a file, if it is one of the user's."""
    return _source_line(name, line) if _is_user_file(name) else None


def innermost_user_line(frame: FrameType | None) -> SourceLine | None:
    """Returns the innermost line of the model that is being traced, if any.

    Args:
      frame: where to start, going outwards.
    """
    interpreted = _last_user_line(TracingContext.extract_stack())
    if interpreted is not None:
        return interpreted
    # What calls torch.export is no part of the model.
    while frame is not None and frame.f_code is not torch.export.export.__code__:
        if _is_user_file(frame.f_code.co_filename):
            return _source_line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def model_frames(_: TracerBase, stack: traceback.StackSummary) -> traceback.StackSummary:
    """Returns the frames of the model that is being traced; takes the place of torch's choice.

    Torch keeps only those of functions called `forward`, and so none of a model that is a function.
    """
    export = torch.export.export.__code__
    start = 0
    for index, frame in enumerate(stack):
        if (frame.filename, frame.name) == (export.co_filename, export.co_name):
            start = index
    return traceback.StackSummary.from_list(
        [frame for frame in stack[start:] if _is_user_file(frame.filename)]
    )


def user_line_of_exception(error: BaseException) -> SourceLine | None:
    """Returns the innermost line of the user's code that an exception came through, if any.

    That of a syntax error is the line that cannot be parsed: it was not run.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        unparsed = user_line(error.filename, error.lineno)
        if unparsed is not None:
            return unparsed
    # Where torch interprets bytecode, it notes what it was at; its own frames say nothing.
    interpreted = _last_user_line(getattr(error, "real_stack", None) or [])
    passed = interpreted or _last_user_line(traceback.extract_tb(error.__traceback__))
    return passed or _last_user_line_in(str(error))


def called_by_user_line(error: BaseException) -> str | None:
    """Returns the name of the function that the innermost line of the user's code had called."""
    called = None
    last_is_user = False
    for frame in traceback.extract_tb(error.__traceback__):
        is_user = _is_user_file(frame.filename)
        if is_user:
            called = None
        elif last_is_user:
            called = frame.name
        last_is_user = is_user
    return called


def _last_user_line(stack: Iterable[traceback.FrameSummary]) -> SourceLine | None:
    found = None
    for frame in stack:
        if _is_user_file(frame.filename) and frame.lineno is not None:
            found = _source_line(frame.filename, frame.lineno)
    return found


def _last_user_line_in(text: str) -> SourceLine | None:
    """Returns the last line of the user's code in a stack as Python prints it, if any."""
    for line in reversed(text.splitlines()):
        match = _FRAME.match(line)
        if match and _is_user_file(match[1]):
            return _source_line(match[1], int(match[2]))
    return None


def user_line_of_node(node: torch.fx.Node) -> SourceLine | None:
    """Returns the line of the user's code that a graph's node was traced from, if known."""
    return _last_user_line_in(node.meta.get("stack_trace") or "")
