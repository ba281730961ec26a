"""Which versions of a model are served, and what lies in the repository's directory."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slipway.program.container import PROGRAM_FILE
from slipway.program.contract import DEFAULT_METHOD
from slipway.serving.errors import StartupError

__all__ = [
    "Fingerprint",
    "Found",
    "VersionPolicy",
    "fingerprint",
    "name_clash",
    "parse_version",
    "scan",
    "served_name",
    "weights_size",
]

_LOGGER = logging.getLogger(__name__)

_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Of each file: its path, size, time of change in nanoseconds, and inode."""


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which of a model's versions are served.

    Attributes:
      latest: the highest so many; None for no such bound.
      only: these; None for all.
    """

    latest: int | None = None
    only: frozenset[int] | None = None

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """Returns the policy that `all`, `latest:N` or `V,V,...` means. Raises: ValueError."""
        if text == "all":
            return cls()
        kind, separator, count = text.partition(":")
        if kind == "latest" and (not separator or _VERSION.fullmatch(count)):
            return cls(latest=int(count or 1))
        versions = text.split(",")
        if all(_VERSION.fullmatch(version) for version in versions):
            return cls(only=frozenset(map(int, versions)))
        raise ValueError(
            f"{text!r} is no version policy; write all, latest:N, or versions as in 3,5"
        )

    def choose(self, versions: Iterable[int]) -> list[int]:
        """Returns those of `versions` that are to be served, ascending."""
        chosen = sorted(v for v in versions if self.only is None or v in self.only)
        return chosen if self.latest is None else chosen[-self.latest :]

    def problem(self, versions: Collection[int]) -> str:
        """Returns why none of `versions` is served; "" if one is, or there are none."""
        if not versions or self.choose(versions):
            return ""
        return (
            f"the version policy {self} takes none of its versions: {', '.join(map(str, versions))}"
        )

    def __str__(self) -> str:
        if self.only is not None:
            return ",".join(map(str, sorted(self.only)))
        return "all" if self.latest is None else f"latest:{self.latest}"


@dataclass(frozen=True, slots=True)
class Found:
    """A model in the directory.

    Attributes:
      name: the model's name.
      versions: ascending.
      problem: why there is none; empty if there are.
      is_missing: whether there is not even a directory of that name.
      is_unreadable: whether it is not known what is there.
    """

    name: str
    versions: tuple[int, ...]
    problem: str = ""
    is_missing: bool = False
    is_unreadable: bool = False


def scan(directory: Path) -> list[Found]:
    """Returns the models below `directory`, by name.

    Raises:
      StartupError: it cannot be read.
    """
    try:
        entries = [entry for entry in os.scandir(directory) if _is_listed(entry)]
    except OSError as error:
        raise StartupError(
            f"cannot read the model repository {directory}: {error.strerror}", exit_code=2
        ) from error
    if (directory / PROGRAM_FILE).exists():
        raise StartupError(
            f"{directory} is a program and no model repository: name a directory that has it at "
            "MODEL/VERSION below it, such as mlp/1",
            exit_code=2,
        )
    return [_found(entry) for entry in sorted(entries, key=lambda entry: entry.name)]


def fingerprint(directory: Path) -> Fingerprint:
    """Returns what tells two states of a version's directory apart, without reading its files."""
    return tuple(sorted(_files(directory)))


def served_name(model: str, method: str, methods: Collection[str]) -> str:
    """Returns what clients call a method of a model.

    Args:
      model: the model's name.
      method: one of `methods`.
      methods: all that the model's program has.
    """
    is_plain = method == DEFAULT_METHOD or len(methods) == 1
    return model if is_plain else f"{model}.{method}"


def name_clash(name: str) -> str:
    """Returns why a version with a method of that name is not served, if the name is taken."""
    return (
        f"a method of it would be served as '{name}', which is the name of another model or of a "
        "method of one"
    )


def weights_size(directory: Path) -> int:
    """Returns how many bytes of weights a version has."""
    return sum(size for path, size, _, _ in _files(directory) if path.endswith(".safetensors"))


def parse_version(text: str) -> int | None:
    """Returns the version that `text` is, or None if it is none."""
    return int(text) if _VERSION.fullmatch(text) else None


def _found(entry: os.DirEntry[str]) -> Found:
    if _MODEL_NAME.fullmatch(entry.name) is None:
        reason = "the name must be letters, digits and any of _.+-, at most 128 of them"
        # Messages are UTF-8, and names of files are any bytes.
        return Found(os.fsencode(entry.name).decode(errors="replace"), (), reason)
    try:
        names = sorted(item.name for item in os.scandir(entry.path) if _is_listed(item))
    except OSError as error:
        reason = f"its directory cannot be read: {error.strerror}"
        return Found(entry.name, (), reason, is_unreadable=True)
    versions = sorted(int(name) for name in names if _VERSION.fullmatch(name))
    for name in names:
        if _VERSION.fullmatch(name) is None:
            _LOGGER.debug("%s/%s is passed over: it is no version", entry.name, name)
    reason = f"it has no version: expected {entry.name}/1/program.pb, or a higher integer"
    if Path(entry.path, PROGRAM_FILE).exists():
        reason += "; it is a program itself: if it is a version, the repository is one level up"
    return Found(entry.name, tuple(versions), "" if versions else reason)


def _is_listed(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:
        return True  # such as a link in a circle; whoever reads it says what is wrong with it


def _files(directory: Path) -> Iterator[tuple[str, int, int, int]]:
    # A file may go while it is looked at: the next look finds another state.
    pending: list[str] = [str(directory)]
    seen: set[tuple[int, int]] = set()
    while pending:
        folder = pending.pop()
        try:
            folder_status = os.stat(folder)
            identity = folder_status.st_dev, folder_status.st_ino
            if identity in seen:
                continue  # links may lead in circles
            seen.add(identity)
            entries: Sequence[os.DirEntry[str]] = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            try:
                if entry.is_dir():
                    pending.append(entry.path)
                    continue
                status = entry.stat()
            except OSError:
                continue
            path = os.path.relpath(entry.path, directory)
            yield path, status.st_size, status.st_mtime_ns, status.st_ino
