"""The configuration as TOML: read with errors that name file, line and key, and written."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slipway.serving.configuration import (
    Configuration,
    ModelSettings,
    SettingError,
    sections,
    settings_of,
)
from slipway.serving.errors import StartupError

__all__ = ["ConfigurationError", "Document", "read", "to_toml"]


# What tomllib raises for integers that Python does not read, and for what overflows the stack. The
# first is the base of its own error, too.
_TOO_MUCH = (ValueError, RecursionError)


class ConfigurationError(StartupError):
    """The configuration must change; the text has a line for each thing that is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems), exit_code=2)
        self.problems = tuple(problems)


class Document:
    """The text of a file, and where in it its keys are."""

    def __init__(self, name: str, text: str) -> None:
        """Parses `text`. Raises: ConfigurationError."""
        self._name = name
        self._lines = text.splitlines(keepends=True)
        try:
            self.content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError([f"{name}:{_located(str(error), len(self._lines))}"]) from None
        except _TOO_MUCH as error:
            reason = "an integer has too many digits: TOML's have 64 bits"
            if isinstance(error, RecursionError):
                reason = "lists or tables lie too deep in each other: no setting has more than two"
            raise ConfigurationError([f"{name}:{self._line_of(type(error))}: {reason}"]) from None

    def problem(self, path: Sequence[str], text: str) -> str:
        """Returns `text` with file and line of the key at `path` before it, if it is there."""
        line = self._line(path)
        return f"{self._name}:{line}: {text}" if line else text

    def _line(self, path: Sequence[str]) -> int:
        """Returns the line, from 1, in which the statement begins that makes `path`; 0 if none."""
        # tomllib keeps no positions. But the beginning of a file that ends between two statements
        # is a file too, and the first such beginning that has the key ends with its statement.
        good = 0
        for end in range(1, len(self._lines) + 1):
            try:
                content = tomllib.loads("".join(self._lines[:end]))
            except _TOO_MUCH:
                continue
            if _has(content, path):
                return good + 1
            good = end
        return 0

    def _line_of(self, kind: type[Exception]) -> int:
        """Returns the first line, from 1, that makes an error which names none."""
        for end in range(1, len(self._lines)):
            try:
                tomllib.loads("".join(self._lines[:end]))
            except tomllib.TOMLDecodeError:
                continue
            except kind:
                return end
        return len(self._lines)


def read(path: Path) -> tuple[Configuration, Document]:
    """Returns what a file sets, and the file, for errors that are found later.

    Paths in it count from the directory that it lies in.

    Raises:
      ConfigurationError: it cannot be read, is no TOML, or has keys or values that there are not.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigurationError([f"cannot read {path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError([f"{path}:{line}: it is not UTF-8, as TOML is"]) from error
    document = Document(str(path), text)
    return _Reader(document, path.parent).configuration(), document


def to_toml(configuration: Configuration) -> str:
    """Returns a file that sets everything to what it is; what has no value is a comment in it."""
    lines: list[str] = []
    for name in sections():
        lines += _section(f"[{name}]", getattr(configuration, name))
    for name, model in configuration.models.items():
        lines += _section(f"[models.{_text(name)}]", model)
    return "\n".join(lines)


class _Reader:
    def __init__(self, document: Document, directory: Path) -> None:
        self._document = document
        self._directory = directory
        self._problems: list[str] = []

    def configuration(self) -> Configuration:
        content = dict(self._document.content)
        values: dict[str, Any] = {}
        models = content.pop("models", {})
        known = sections()
        self._refuse_unknown((), content, [*known, "models"], "section")
        for name, section in known.items():
            if name in content:
                values[name] = self._read((name,), content[name], section)
        if self._is_table(("models",), models):
            values["models"] = {
                name: self._read(("models", name), settings, ModelSettings)
                for name, settings in models.items()
            }
        if self._problems:
            raise ConfigurationError(self._problems)
        return Configuration(**values)

    def _read(self, path: tuple[str, ...], content: Any, section: type) -> Any:
        if not self._is_table(path, content):
            return None
        settings = settings_of(section)
        self._refuse_unknown(path, content, settings, "key")
        values = {}
        for name, setting in settings.items():
            if name not in content:
                continue
            try:
                value = setting.check(content[name])
            except SettingError as error:
                self._report((*path, name), str(error))
                continue
            if setting.is_path:
                value = str(self._directory.joinpath(value).absolute())
            values[name] = value
        return section(**values)

    def _is_table(self, path: tuple[str, ...], content: Any) -> bool:
        if isinstance(content, dict):
            return True
        self._report(path, f"{'.'.join(path)} must be a table: write [{'.'.join(path)}]")
        return False

    def _refuse_unknown(
        self, path: tuple[str, ...], content: Mapping[str, Any], known: Iterable[str], kind: str
    ) -> None:
        for name in content:
            if name in known:
                continue
            homes = [each for each, section in sections().items() if name in settings_of(section)]
            close = difflib.get_close_matches(name, list(known), n=1)
            if path and homes:
                hint = f"it belongs into [{homes[0]}]"
            elif close:
                hint = f"did you mean '{close[0]}'?"
            else:
                hint = f"there are {', '.join(known)}"
            where = f" in [{'.'.join(path)}]" if path else ""
            self._report((*path, name), f"unknown {kind} {name!r}{where}; {hint}")

    def _report(self, path: Sequence[str], text: str) -> None:
        self._problems.append(self._document.problem(path, text))


def _section(header: str, settings: Any) -> list[str]:
    lines = [header]
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        lines.append(f"# {item.name}" if value is None else f"{item.name} = {_text(value)}")
    return [*lines, ""]


def _text(value: Any) -> str:
    if isinstance(value, str):
        # Strings of JSON are strings of TOML, but for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_text(name)} = {_text(item)}" for name, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return repr(value)


def _has(content: Any, path: Sequence[str]) -> bool:
    for name in path:
        if not isinstance(content, dict) or name not in content:
            return False
        content = content[name]
    return True


def _located(text: str, last: int) -> str:
    """Returns a message of tomllib's with the line in front, and in words of ours for a repetition.

    It ends with `(at line 4, column 9)` or `(at end of document)`; `last` is the document's line.
    """
    text, _, place = text.removesuffix(")").rpartition(" (at ")
    line = int(place.split()[1].rstrip(",")) if place.startswith("line ") else last
    if text.startswith(("Cannot overwrite a value", "Cannot declare")):
        text = "this key or section is there twice"
    return f"{line}: {text}"
