"""The command line: a flag for each key of the configuration, and the file that they override."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slipway.serving.configuration import (
    Configuration,
    Setting,
    SettingError,
    sections,
    settings_of,
)
from slipway.serving.configuration_file import ConfigurationError, Document, read

__all__ = ["CommandLine", "parse"]


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What was asked for.

    Attributes:
      configuration: the file's, with what the flags say instead.
      check: whether to say what is wrong with it, rather than to serve.
      document: the file; None if there is none.
      is_worker: whether a process that supervises this one started it.
      flags: by the path of the key that each sets, whatever the file says of it.
    """

    configuration: Configuration
    check: bool
    document: Document | None
    is_worker: bool = False
    flags: Mapping[tuple[str, ...], str] = field(default_factory=dict)

    def problem(self, path: Sequence[str], text: str) -> str:
        """Returns `text` with where the value at `path` comes from, if that is known."""
        if flag := self.flags.get(tuple(path)):
            return f"{flag}: {text}"
        return text if self.document is None else self.document.problem(path, text)


def parse(arguments: Sequence[str] | None) -> CommandLine:
    """Returns what `arguments`, or those of the process, ask for.

    A wrong flag ends the process with code 2, as argparse does it.

    Raises:
      ConfigurationError: the file, or what it and the flags say together, must change.
    """
    parser = argparse.ArgumentParser(
        prog="server",
        # All flags are two screens, above what is wrong with one of them.
        usage="%(prog)s --repository=DIR [--config=FILE] [--check] [FLAG ...]; --help lists all",
        description="Serves programs over the Open Inference Protocol (gRPC).",
    )
    parser.add_argument(
        "--config", type=_absolute, metavar="FILE", help="a TOML file (docs/configuration.md)"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="say what is wrong with the configuration, print it as TOML, and exit",
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    # The repository that a torch_server carries.
    parser.add_argument("--bundle", type=_absolute, help=argparse.SUPPRESS)
    for section, fields in sections().items():
        group = parser.add_argument_group(section)
        for setting in settings_of(fields).values():
            _add(group, section, setting)
    given = vars(parser.parse_args(arguments))
    path, check, is_worker = given.pop("config"), given.pop("check"), given.pop("worker")
    bundle = given.pop("bundle")
    configuration, document = (Configuration(), None) if path is None else read(Path(path))
    if bundle is not None and given["repository.path"] is None:
        given["repository.path"] = bundle
        said = {} if document is None else document.content.get("repository", {})
        # Its native code is of the same build as the server. What lies elsewhere may be anybody's.
        if given["repository.compiled"] is None and "compiled" not in said:
            given["repository.compiled"] = "auto"
    flags: dict[tuple[str, ...], str] = {}
    for section, fields in sections().items():
        values = {}
        for name, setting in settings_of(fields).items():
            if (value := given.get(f"{section}.{name}")) is None:
                continue
            values[name] = _combined(setting, getattr(getattr(configuration, section), name), value)
            # What is wrong with a list may come from either.
            if setting.container is not list:
                flags[section, name] = setting.flag
        changed = dataclasses.replace(getattr(configuration, section), **values)
        configuration = dataclasses.replace(configuration, **{section: changed})
    line = CommandLine(configuration, check, document, is_worker, flags)
    problems = [line.problem(path, text) for path, text in configuration.problems()]
    if configuration.repository.path is None:
        problems.append("there is no repository: give --repository, or path in [repository]")
    if problems:
        raise ConfigurationError(problems)
    return line


def _add(group: argparse._ArgumentGroup, section: str, setting: Setting) -> None:
    facts: dict[str, Any] = {"dest": f"{section}.{setting.name}", "default": None}
    text = setting.help.replace("`", "").replace("%", "%%")
    if setting.kind is bool:
        facts["action"] = argparse.BooleanOptionalAction
    else:
        facts["type"] = _absolute if setting.is_path else _converter(setting)
        facts["metavar"] = setting.metavar or None
    if setting.container is list:
        facts["action"] = "append"
        text += "; repeatable, and added to those of the file"
    elif setting.choices:
        facts["metavar"] = "{" + ",".join(setting.choices) + "}"
    if setting.default not in (None, ()):
        default = setting.default
        text += f" (default: {f'{default:g}' if isinstance(default, float) else default})"
    if not facts.get("metavar") and setting.kind is not bool:
        facts["metavar"] = setting.name.upper()
    group.add_argument(setting.flag, help=text, **facts)


def _converter(setting: Setting) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return setting.parse(text)
        except SettingError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _combined(setting: Setting, before: Any, value: Any) -> Any:
    # A list adds to the file's: torch_server passes a target's libraries of operators as flags.
    return (*before, *value) if setting.container is list else value


def _absolute(path: str) -> str:
    if not path:
        raise argparse.ArgumentTypeError("expected a path, and got none")
    # `bazel run` changes the directory and says here where the user was.
    return str(Path(os.environ.get("BUILD_WORKING_DIRECTORY", "")).joinpath(path).absolute())
