"""What is known of one key of the configuration: its type, its bounds, its flag, its meaning."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from slipway.program.words import with_article
from slipway.serving.versions import VersionPolicy

__all__ = [
    "Setting",
    "SettingError",
    "byte_count",
    "count",
    "path",
    "seconds",
    "setting",
    "settings_of",
]

_DAY = 86400.0
_EIB = 2**60


class SettingError(ValueError):
    """A value that a key cannot have; the text says which values it can."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a key.

    Attributes:
      name: the key.
      kind: the type of its value; for a list or a table, that of its elements.
      container: None, list, or dict (a table with names for keys).
      optional: whether it has no value at first.
      default: its value at first.
      help: what it means, as the end of a sentence.
      flag: of the command line, with its dashes; empty if there is none.
      metavar: what the help of the flag calls the value.
      minimum: the least value of a number.
      maximum: the largest value of a number.
      choices: the values that a text may have; empty for any.
      is_path: whether it is a path, which in a file counts from the file's directory.
    """

    name: str
    kind: type
    container: type | None
    optional: bool
    default: Any
    help: str
    flag: str
    metavar: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    is_path: bool

    def check(self, value: Any) -> Any:
        """Returns `value`, as TOML gives it, as the field holds it.

        Raises:
          SettingError: the key cannot have it.
        """
        if self.container is None:
            return self._check_one(value)
        if isinstance(value, list) and self.container is list:
            return tuple(self._check_one(item) for item in value)
        if isinstance(value, dict) and self.container is dict:
            items = value.items()
            return {name: self._check_one(item, f"{self.name}.{name}") for name, item in items}
        raise SettingError(f"{self.name} must be a {self.type_text}, not {_type_name(value)}")

    def parse(self, text: str) -> Any:
        """Returns what the text of a flag means, one element of a list. Raises: SettingError."""
        value: Any = text
        if self.kind is bool:
            value = {"true": True, "false": False}.get(text, text)
        elif self.kind in (int, float):
            try:
                value = self.kind(text)
            except ValueError:
                raise SettingError(f"{text!r} is no {_TYPES[self.kind]}") from None
        return self._check_one(value)

    @property
    def type_text(self) -> str:
        """Returns the type in words."""
        text = "path" if self.is_path else _TYPES[self.kind]
        if self.container is list:
            return f"list of {text}s"
        if self.container is dict:
            return f"table of {text}s"
        return text

    @property
    def bounds_text(self) -> str:
        """Returns the values that are allowed, in words; empty if the type says it all."""
        if self.choices:
            return ", ".join(f'"{choice}"' for choice in self.choices)
        if self.minimum is not None and self.maximum is not None:
            form = "g" if self.kind is float else "d"
            return f"{self.kind(self.minimum):{form}}..{self.kind(self.maximum):{form}}"
        return ""

    def _check_one(self, value: Any, name: str = "") -> Any:
        name = name or self.name
        # Not isinstance: a bool is an int to Python.
        accepted = (int, float) if self.kind is float else (self.kind,)
        if type(value) not in accepted:
            raise SettingError(f"{name} must be {_type_name(self.kind())}, not {_type_name(value)}")
        if isinstance(value, int) and value.bit_length() > 64:
            # Python does not write all of these.
            raise SettingError(
                f"{name} is an integer of {value.bit_length()} bits; 64 are the most"
            )
        if self.choices and value not in self.choices:
            raise SettingError(f"{name} is {value!r}; it must be one of {self.bounds_text}")
        if self.minimum is not None and self.maximum is not None:
            if not self.minimum <= value <= self.maximum:
                raise SettingError(f"{name} is {value}; it must be in {self.bounds_text}")
            value = self.kind(value)
        if self.kind is str and not value.isprintable():
            raise SettingError(f"{name} is {value!r}; it must be printable text on one line")
        if self.name == "version_policy":
            try:
                VersionPolicy.parse(value)
            except ValueError as error:
                raise SettingError(f"{name}: {error}") from None
        return value


_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def _type_name(value: Any) -> str:
    names = {**_TYPES, list: "list", dict: "table"}
    name = names.get(type(value), type(value).__name__)
    return with_article(name)


def setting(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    metavar: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    is_path: bool = False,
) -> Any:
    facts = {
        "help": help,
        "flag": flag,
        "metavar": metavar,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "is_path": is_path,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=facts)
    return field(default=default, metadata=facts)


def count(default: int | None, help: str, *, minimum: int = 1, **facts: Any) -> Any:
    """Returns a field that is a number of things."""
    facts = {"metavar": "N", "maximum": 2**31 - 1, **facts}
    return setting(default, help, minimum=minimum, **facts)


def byte_count(default: int | None, help: str, *, maximum: int = _EIB, **facts: Any) -> Any:
    """Returns a field that is a size."""
    return setting(default, help, metavar="BYTES", minimum=1, maximum=maximum, **facts)


def seconds(default: float, help: str, *, minimum: float = 0.0, **facts: Any) -> Any:
    """Returns a field that is a duration."""
    return setting(default, help, metavar="S", minimum=minimum, maximum=_DAY, **facts)


def path(help: str) -> Any:
    """Returns a field that is a file, and has no default."""
    return setting(None, help, metavar="FILE", is_path=True)


@cache
def settings_of(section: type) -> dict[str, Setting]:
    """Returns what is known of each key of a section, by the key."""
    hints = typing.get_type_hints(section)
    return {item.name: _known(item, hints[item.name]) for item in dataclasses.fields(section)}


def _known(item: dataclasses.Field[Any], hint: Any) -> Setting:
    facts = dict(item.metadata)
    optional = False
    if isinstance(hint, types.UnionType):
        optional = True
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
    origin = typing.get_origin(hint)
    container = {tuple: list, None: None}.get(origin, dict)
    if container is list:
        hint = typing.get_args(hint)[0]
    elif container is dict:
        hint = typing.get_args(hint)[1]
    default: Any = {} if item.default is dataclasses.MISSING else item.default
    if facts["flag"] is None:
        facts["flag"] = "--" + item.name.replace("_", "-")
    return Setting(item.name, hint, container, optional, default, **facts)
