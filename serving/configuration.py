"""What can be set: one tree of dataclasses that the file, the flags, `--check` and the docs share.

A section of the file is a dataclass, and a key of it a field, made with `_setting`, which holds
all there is to know of it. To add a key, add a field: the flag, the checks and
`docs/configuration.md` follow (the last by `bazel run //docs:write_configuration`).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from slipway.serving.routing import Route
from slipway.serving.versions import VersionPolicy, parse_version

__all__ = [
    "Configuration",
    "LimitSettings",
    "LoggingSettings",
    "ModelSettings",
    "RepositorySettings",
    "SchedulingSettings",
    "SecuritySettings",
    "ServerSettings",
    "Setting",
    "SettingError",
    "sections",
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
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _setting(
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


def _count(default: int | None, help: str, *, minimum: int = 1, **facts: Any) -> Any:
    facts = {"metavar": "N", "maximum": 2**31 - 1, **facts}
    return _setting(default, help, minimum=minimum, **facts)


def _bytes(default: int | None, help: str, *, maximum: int = _EIB, **facts: Any) -> Any:
    return _setting(default, help, metavar="BYTES", minimum=1, maximum=maximum, **facts)


def _seconds(default: float, help: str, *, minimum: float = 0.0, **facts: Any) -> Any:
    return _setting(default, help, metavar="S", minimum=minimum, maximum=_DAY, **facts)


def _path(help: str) -> Any:
    return _setting(None, help, metavar="FILE", is_path=True)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The process: where it listens and what it runs on."""

    host: str = _setting("127.0.0.1", "where to listen; `0.0.0.0` to be reached from elsewhere")
    port: int = _count(8001, "0 for any that is free", minimum=0, maximum=65535)
    device: str = _setting("cpu", "`cpu`, `cuda:N`, or `auto`")
    threads: int = _count(
        0,
        "processor threads of an instance; 0 for the processors, divided by the instances",
        minimum=0,
        maximum=1024,
    )
    custom_ops: tuple[str, ...] = _setting(
        (), "Python modules that register operators which programs may call", metavar="MODULE"
    )
    allow_client_shared_memory: bool = _setting(
        False,
        "whether clients of this machine may register files of /dev/shm, owned by the server's "
        "user, that tensors are read from and written to",
    )
    max_request_bytes: int = _bytes(2**32, "what all requests in the server hold, at most")
    grace_seconds: float = _seconds(30.0, "how long requests may take to finish after SIGTERM")
    supervise: bool = _setting(
        False,
        "whether to run the server in a process of its own, and to start it again when that ends",
    )
    processes: int = _count(
        1,
        "processes that serve the same port, each on its own; more than one are supervised",
        maximum=1024,
    )

    @property
    def is_supervised(self) -> bool:
        """Returns whether servers are started by a process that starts them again."""
        return self.supervise or self.processes > 1


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """What is served, and how it follows the directory."""

    path: str | None = _setting(
        None,
        "a directory with MODEL/VERSION/program.pb below it",
        flag="--repository",
        metavar="DIR",
        is_path=True,
    )
    version_policy: str = _setting(
        "all",
        "which versions of a model are served: `all`, `latest:N`, or versions as in `3,5`",
        metavar="POLICY",
    )
    model_control: str = _setting(
        "fixed",
        "whether what is served follows the repository: never, by looking again and again, or "
        "when RepositoryModelLoad and RepositoryModelUnload ask for it",
        choices=("fixed", "poll", "explicit"),
    )
    poll_seconds: float = _seconds(
        5.0, 'between two looks, with model_control = "poll"', minimum=0.01
    )
    load_model: tuple[str, ...] = _setting(
        (), 'models to load at the start, with model_control = "explicit"', metavar="NAME"
    )
    when_memory_is_short: str = _setting(
        "refuse",
        "what becomes of a version that does not fit beside the one that it replaces: it is not "
        "loaded, or takes its place with a gap in between",
        choices=("refuse", "swap"),
    )
    verify: str = _setting(
        "full",
        "what of the weights is compared with what was written: all bytes, or, of very large "
        "weights, their sizes",
        choices=("full", "sizes"),
    )
    compiled: str = _setting(
        "never",
        "whether native code that lies in the repository runs, with all rights of the server: "
        "never; where it is made for this machine; or always, so that a program without is not "
        "served",
        choices=("never", "auto", "require"),
    )


@dataclass(frozen=True, slots=True)
class SchedulingSettings:
    """How the requests of each model are run; `[models.NAME]` can say otherwise."""

    instances: int = _count(
        1, "batches that run at the same time; they share the weights", maximum=1024
    )
    max_batch_size: int = _count(64, "rows of a batch of several requests, at most", metavar="ROWS")
    batch_delay_ms: float = _setting(
        0.0,
        "how long a request may wait for others after a batch, never while an instance is idle",
        metavar="MS",
        minimum=0.0,
        maximum=60_000.0,
    )
    max_queue_requests: int = _count(1024, "requests that wait, at most; more are refused at once")
    max_queue_bytes: int = _bytes(2**30, "what they hold, at most")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One model: its versions, and where it differs from `[scheduling]`."""

    version_policy: str | None = _setting(None, "which versions are served", flag="")
    labels: Mapping[str, int] = _setting(
        {}, "the versions that clients may ask for by a name", flag="", minimum=1, maximum=2**59
    )
    shares: Mapping[str, float] = _setting(
        {},
        "percent of the requests without a version that go to a label; requests with one id go to "
        "the same, and the rest goes to `stable`, or the highest version without a share",
        flag="",
        minimum=0.0,
        maximum=100.0,
    )
    instances: int | None = _count(None, "as in `[scheduling]`", flag="", maximum=1024)
    max_batch_size: int | None = _count(None, "as in `[scheduling]`", flag="")
    batch_delay_ms: float | None = _setting(
        None, "as in `[scheduling]`", flag="", minimum=0.0, maximum=60_000.0
    )
    max_queue_requests: int | None = _count(None, "as in `[scheduling]`", flag="")
    max_queue_bytes: int | None = _bytes(None, "as in `[scheduling]`", flag="")

    @property
    def route(self) -> Route:
        """Returns where the model's requests go."""
        return Route(self.labels, self.shares)


@dataclass(frozen=True, slots=True)
class SecuritySettings:
    """TLS, and who may do what."""

    tls_certificate: str | None = _path(
        "PEM file with the server's certificate, and those between it and the authority's"
    )
    tls_key: str | None = _path("PEM file with its private key, without a password")
    tls_client_ca: str | None = _path(
        "PEM file with authorities; every client then needs a certificate of one of them"
    )
    inference_tokens: str | None = _path(
        "file with a bearer token, or `sha256:` and its digest, on each line, for inference"
    )
    inference_identities: tuple[str, ...] = _setting(
        (), "names in client certificates that may use inference", metavar="NAME"
    )
    control_tokens: str | None = _path("as inference_tokens, for control")
    control_identities: tuple[str, ...] = _setting(
        (), "names in client certificates that may use control", metavar="NAME"
    )
    control_from_loopback: bool = _setting(
        True,
        "whether clients on the server's own host may use control when it has neither tokens nor "
        "identities; false where a proxy on that host lets others in",
    )


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What one client may take from the others. A 0 means that there is no such bound."""

    max_message_bytes: int = _bytes(2**31 - 1, "of a message, received or sent", maximum=2**31 - 1)
    max_metadata_bytes: int = _setting(
        16384, "of a request's metadata", metavar="BYTES", minimum=1024, maximum=2**20
    )
    max_connections: int = _count(
        0,
        "at the same time; more are closed at once. 0 for what the limit of open files allows",
        minimum=0,
    )
    max_concurrent_streams: int = _count(
        4096, "calls of one connection at the same time; more wait in the client"
    )
    handshake_seconds: float = _seconds(
        20.0, "until a connection has said what it wants, TLS and HTTP/2", minimum=0.1
    )
    keepalive_seconds: float = _seconds(
        60.0, "of silence until a client is asked whether it is there"
    )
    keepalive_timeout_seconds: float = _seconds(
        20.0, "that it may take to answer; then its connection is closed", minimum=0.1
    )
    min_ping_interval_seconds: float = _seconds(
        10.0, "between a client's own pings; one that sends more often is sent away"
    )
    max_connection_idle_seconds: float = _seconds(
        3600.0, "without a call until a connection is closed; clients reconnect by themselves"
    )
    max_connection_age_seconds: float = _seconds(
        0.0, "of a connection until the client is asked to reconnect, perhaps elsewhere"
    )
    max_connection_age_grace_seconds: float = _seconds(
        60.0, "that the calls of such a connection may take to finish"
    )


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """What is written to standard error."""

    level: str = _setting(
        "info",
        "from which on messages are written",
        flag="--log-level",
        choices=("debug", "info", "warning", "error"),
    )


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that can be set, each field a section of the file."""

    server: ServerSettings = ServerSettings()
    repository: RepositorySettings = RepositorySettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    security: SecuritySettings = SecuritySettings()
    limits: LimitSettings = LimitSettings()
    logging: LoggingSettings = LoggingSettings()

    def problems(self) -> list[tuple[tuple[str, ...], str]]:
        """Returns what is wrong with values that are right each by itself.

        Each is the path of a key that is at fault, such as `("security", "tls_key")`, and a text.
        """
        found: list[tuple[tuple[str, ...], str]] = []
        if self.server.processes > 1:
            text = (
                "needs processes = 1: a request to change something reaches one of the processes, "
                "and the others would not know of it"
            )
            if self.repository.model_control == "explicit":
                path = ("repository", "model_control")
                found.append((path, f'model_control = "explicit" {text}'))
            if self.server.allow_client_shared_memory:
                path = ("server", "allow_client_shared_memory")
                found.append((path, f"allow_client_shared_memory {text}"))
        security = self.security
        if (security.tls_certificate is None) != (security.tls_key is None):
            given, missing = "tls_certificate", "tls_key"
            if security.tls_certificate is None:
                given, missing = missing, given
            found.append((("security", given), f"{given} needs {missing} beside it"))
        if security.tls_client_ca is not None and security.tls_certificate is None:
            text = "tls_client_ca needs tls_certificate and tls_key beside it"
            found.append((("security", "tls_client_ca"), text))
        for name in ("inference_identities", "control_identities"):
            if getattr(security, name) and security.tls_client_ca is None:
                text = f"{name} needs tls_client_ca: names are those of verified certificates"
                found.append((("security", name), text))
        for name, model in self.models.items():
            found += [(("models", name, key), text) for key, text in _route_problems(model)]
        return found


def sections() -> dict[str, type]:
    """Returns the dataclass of each section that is no table of models, by the section's name."""
    hints = typing.get_type_hints(Configuration)
    return {name: hint for name, hint in hints.items() if name != "models"}


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


def _route_problems(model: ModelSettings) -> list[tuple[str, str]]:
    found = []
    for label in model.labels:
        if not label or parse_version(label) is not None:
            text = f"the label {label!r} would be taken for a version: labels are names"
            found.append(("labels", text))
    for label in model.shares:
        if label not in model.labels:
            known = ", ".join(model.labels) or "none"
            found.append(("shares", f"there is no label {label!r}; the labels are: {known}"))
    total = sum(model.shares.values())
    if total > 100:
        found.append(("shares", f"the shares are {total:g} percent in all; 100 is the most"))
    return found
