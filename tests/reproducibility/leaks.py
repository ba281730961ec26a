"""Finds in files what would tie them to one build: paths, a user, a host, a time."""

from __future__ import annotations

import os
import pwd
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf.message import Message

from slipway.proto import program_pb2 as pb

__all__ = ["leaks_of_bytes", "leaks_of_message", "leaks_of_program", "machine_names"]

# Parts of the paths that an action sees, and what absolute paths begin with.
_PATHS = (
    rb"execroot|bazel-out|linux-sandbox|/sandbox/|\.runfiles|site-packages/"
    rb"|(?<![\w.])/(?:home|root|tmp|usr|var|work|Users)/"
)
_TIMES = rb"\b20\d\d-[01]\d-[0-3]\d\b|\b\d\d:\d\d:\d\d\b"

# From 2017 to 2065, in seconds, milliseconds, microseconds and nanoseconds.
_EPOCH = [(1_500_000_000 * unit, 3_000_000_000 * unit) for unit in (1, 10**3, 10**6, 10**9)]

_SECTIONS: dict[str, type[Message]] = {
    "cases": pb.ProgramCases,
    "contract": pb.ProgramContract,
    "graph": pb.ProgramGraph,
    "weights": pb.WeightsIndex,
}


def machine_names() -> Mapping[str, str]:
    """Returns what would betray this machine and its user, by what it is."""
    user = pwd.getpwuid(os.getuid())
    names = {"host name": socket.gethostname(), "home": user.pw_dir, "user name": user.pw_name}
    # Words that any text may hold.
    return {
        kind: name
        for kind, name in names.items()
        if name not in ("", "/", "localhost", "nobody", "root")
    }


def leaks_of_bytes(data: bytes, names: Mapping[str, str]) -> list[str]:
    """Returns what the bytes hold of paths, times in words, and the given names.

    Args:
      data: the content of a file, without the data of tensors, which may spell anything.
      names: texts that must not appear, by what they are.
    """
    found = [f"path: {_around(data, match)}" for match in re.finditer(_PATHS, data)]
    found += [f"time: {_around(data, match)}" for match in re.finditer(_TIMES, data)]
    for kind, name in names.items():
        pattern = rb"(?<![A-Za-z0-9])" + re.escape(name.encode()) + rb"(?![A-Za-z0-9])"
        found += [f"{kind}: {_around(data, match)}" for match in re.finditer(pattern, data)]
    return found


def leaks_of_message(message: Message) -> list[str]:
    """Returns the integers of a message that could be a time."""
    return [
        f"time: {field} is {value}"
        for field, value in _integers(message)
        if any(low <= value < high for low, high in _EPOCH)
    ]


def leaks_of_program(directory: Path, names: Mapping[str, str]) -> list[str]:
    """Returns what a program's files hold that ties them to one build, each with its file."""
    found = []
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        data = path.read_bytes()
        leaks: list[str] = []
        if path.suffix == ".safetensors":
            # Eight bytes say how long the header is; tensors follow it.
            data = data[: 8 + int.from_bytes(data[:8], "little")]
        elif path.name == "program.pb":
            program = pb.Program.FromString(data)
            leaks += leaks_of_message(program)
            for section, kind in _SECTIONS.items():
                leaks += leaks_of_message(kind.FromString(getattr(program, section)))
        elif path.name == "sources.pb":
            leaks += leaks_of_message(pb.Sources.FromString(data))
        leaks += leaks_of_bytes(data, names)
        found += [f"{path.relative_to(directory)}: {leak}" for leak in leaks]
    return found


def _integers(message: Message) -> Iterator[tuple[str, int]]:
    for field, value in message.ListFields():
        for element in [value] if isinstance(value, (int, str, bytes, float, Message)) else value:
            if isinstance(element, Message):
                yield from _integers(element)
            elif isinstance(element, int):
                yield field.full_name, element


def _around(data: bytes, match: re.Match[bytes]) -> str:
    return repr(data[max(match.start() - 24, 0) : match.end() + 24])
