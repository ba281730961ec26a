"""What can be set: one tree of dataclasses that the file, the flags, `--check` and the docs share.

A section of the file is a dataclass, and a key of it a field, made with `setting`, which holds
all there is to know of it. To add a key, add a field: the flag, the checks and
`docs/configuration.md` follow (the last by `bazel run //docs:write_configuration`).
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field

from slipway.serving.routing import Route
from slipway.serving.settings import (
    Setting,
    SettingError,
    byte_count,
    count,
    path,
    seconds,
    setting,
    settings_of,
)
from slipway.serving.versions import parse_version

__all__ = [
    "Configuration",
    "LimitSettings",
    "LoggingSettings",
    "ModelSettings",
    "MonitoringSettings",
    "RepositorySettings",
    "SchedulingSettings",
    "SecuritySettings",
    "ServerSettings",
    "Setting",
    "SettingError",
    "sections",
    "settings_of",
]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The process: where it listens and what it runs on."""

    host: str = setting("127.0.0.1", "where to listen; `0.0.0.0` to be reached from elsewhere")
    port: int = count(8001, "0 for any that is free", minimum=0, maximum=65535)
    device: str = setting("cpu", "`cpu`, `cuda:N`, or `auto`")
    threads: int = count(
        0,
        "processors that each batch uses; 0 for all if it runs alone, and else one",
        minimum=0,
        maximum=1024,
    )
    cuda_graph_bytes: int = setting(
        0,
        "memory of each GPU for CUDA graphs of sizes that recur; once it is taken, no more are "
        "recorded",
        metavar="BYTES",
        minimum=0,
        maximum=2**60,
    )
    custom_ops: tuple[str, ...] = setting(
        (), "Python modules that register operators which programs may call", metavar="MODULE"
    )
    allow_client_shared_memory: bool = setting(
        False,
        "whether clients of this machine may register files of /dev/shm, owned by the server's "
        "user, that tensors are read from and written to",
    )
    max_request_bytes: int = byte_count(
        2**32, "what all requests in the server hold, and answers that were not read, at most"
    )
    grace_seconds: float = seconds(30.0, "how long requests may take to finish after SIGTERM")
    supervise: bool = setting(
        False,
        "whether to run the server in a process of its own, and to start it again when that ends",
    )
    processes: int = count(
        1,
        "processes that serve the same port, each on its own; more than one are supervised",
        maximum=1024,
    )
    silence_seconds: float = seconds(
        60.0,
        "how long a process that is supervised may give no sign of life, such as one that is "
        "stopped or deadlocked, before it is killed and started again; 0 for as long as it likes",
    )

    @property
    def is_supervised(self) -> bool:
        """Returns whether servers are started by a process that starts them again."""
        return self.supervise or self.processes > 1


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """What is served, and how it follows the directory."""

    path: str | None = setting(
        None,
        "a directory with MODEL/VERSION/program.pb below it",
        flag="--repository",
        metavar="DIR",
        is_path=True,
    )
    version_policy: str = setting(
        "all",
        "which versions of a model are served: `all`, `latest:N`, or versions as in `3,5`",
        metavar="POLICY",
    )
    model_control: str = setting(
        "fixed",
        "whether what is served follows the repository: never, by looking again and again, or "
        "when RepositoryModelLoad and RepositoryModelUnload ask for it",
        choices=("fixed", "poll", "explicit"),
    )
    poll_seconds: float = seconds(
        5.0, 'between two looks, with model_control = "poll"', minimum=0.01
    )
    load_model: tuple[str, ...] = setting(
        (), 'models to load at the start, with model_control = "explicit"', metavar="NAME"
    )
    when_memory_is_short: str = setting(
        "refuse",
        "what becomes of a version that does not fit beside the one that it replaces: it is not "
        "loaded, or takes its place with a gap in between",
        choices=("refuse", "swap"),
    )
    verify: str = setting(
        "full",
        "what of the weights is compared with what was written: all bytes, or, of very large "
        "weights, their sizes",
        choices=("full", "sizes"),
    )
    compiled: str = setting(
        "never",
        "whether native code that lies in the repository runs, with all rights of the server: "
        "never; where it is made for this machine; or always, so that a program without is not "
        "served",
        choices=("never", "auto", "require"),
    )
    graph_engine: str = setting(
        "interpreter",
        "what runs graphs: torch's interpreter, side by side on several processors, or Python, "
        "whose tracebacks say more",
        choices=("interpreter", "python"),
    )


@dataclass(frozen=True, slots=True)
class SchedulingSettings:
    """How the requests of each model are run; `[models.NAME]` can say otherwise."""

    instances: int | None = count(
        None,
        "batches that run at the same time, and share the weights; unless said, one for each "
        "processor, up to 8, or one on a GPU",
        maximum=1024,
    )
    max_batch_size: int = count(64, "rows of a batch of several requests, at most", metavar="ROWS")
    batch_delay_ms: float = setting(
        0.0,
        "how long a request may wait for others after a batch: for half of its time at most, and "
        "never while an instance is idle",
        metavar="MS",
        minimum=0.0,
        maximum=60_000.0,
    )
    max_queue_requests: int = count(1024, "requests that wait, at most; more are refused at once")
    max_queue_bytes: int = byte_count(2**30, "what they hold, at most")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One model: its versions, and where it differs from `[scheduling]`."""

    version_policy: str | None = setting(None, "which versions are served", flag="")
    labels: Mapping[str, int] = setting(
        {}, "the versions that clients may ask for by a name", flag="", minimum=1, maximum=2**59
    )
    shares: Mapping[str, float] = setting(
        {},
        "percent of the requests without a version that go to a label; requests with one id go to "
        "the same, and the rest goes to `stable`, or the highest version without a share",
        flag="",
        minimum=0.0,
        maximum=100.0,
    )
    device: str | None = setting(None, "as in `[server]`", flag="")
    instances: int | None = count(None, "as in `[scheduling]`", flag="", maximum=1024)
    max_batch_size: int | None = count(None, "as in `[scheduling]`", flag="")
    batch_delay_ms: float | None = setting(
        None, "as in `[scheduling]`", flag="", minimum=0.0, maximum=60_000.0
    )
    max_queue_requests: int | None = count(None, "as in `[scheduling]`", flag="")
    max_queue_bytes: int | None = byte_count(None, "as in `[scheduling]`", flag="")

    @property
    def route(self) -> Route:
        """Returns where the model's requests go."""
        return Route(self.labels, self.shares)


@dataclass(frozen=True, slots=True)
class SecuritySettings:
    """TLS, and who may do what."""

    tls_certificate: str | None = path(
        "PEM file with the server's certificate, and those between it and the authority's"
    )
    tls_key: str | None = path("PEM file with its private key, without a password")
    tls_client_ca: str | None = path(
        "PEM file with authorities; every client then needs a certificate of one of them"
    )
    inference_tokens: str | None = path(
        "file with a bearer token, or `sha256:` and its digest, on each line, for inference"
    )
    inference_identities: tuple[str, ...] = setting(
        (), "names in client certificates that may use inference", metavar="NAME"
    )
    control_tokens: str | None = path("as inference_tokens, for control")
    control_identities: tuple[str, ...] = setting(
        (), "names in client certificates that may use control", metavar="NAME"
    )
    control_from_loopback: bool = setting(
        True,
        "whether clients on the server's own host may use control when it has neither tokens nor "
        "identities; false where a proxy on that host lets others in",
    )


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What one client may take from the others. A 0 means that there is no such bound."""

    max_message_bytes: int = byte_count(
        2**31 - 1, "of a message, received or sent", maximum=2**31 - 1
    )
    max_metadata_bytes: int = setting(
        16384, "of a request's metadata", metavar="BYTES", minimum=1024, maximum=2**20
    )
    max_connections: int = count(
        0,
        "at the same time; more are closed at once. 0 for what the limit of open files allows",
        minimum=0,
    )
    max_concurrent_streams: int = count(
        4096, "calls of one connection at the same time; more wait in the client"
    )
    handshake_seconds: float = seconds(
        20.0, "until a connection has said what it wants, TLS and HTTP/2", minimum=0.1
    )
    keepalive_seconds: float = seconds(
        60.0, "of silence until a client is asked whether it is there"
    )
    keepalive_timeout_seconds: float = seconds(
        20.0, "that it may take to answer; then its connection is closed", minimum=0.1
    )
    min_ping_interval_seconds: float = seconds(
        10.0, "between a client's own pings; one that sends more often is sent away"
    )
    max_connection_idle_seconds: float = seconds(
        3600.0, "without a call until a connection is closed; clients reconnect by themselves"
    )
    max_connection_age_seconds: float = seconds(
        0.0, "of a connection until the client is asked to reconnect, perhaps elsewhere"
    )
    max_connection_age_grace_seconds: float = seconds(
        60.0, "that the calls of such a connection may take to finish"
    )


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """What is written to standard error."""

    level: str = setting(
        "info",
        "from which on messages are written",
        flag="--log-level",
        choices=("debug", "info", "warning", "error"),
    )
    format: str = setting(
        "text",
        "for people, or one JSON object a line",
        flag="--log-format",
        choices=("text", "json"),
    )
    access_log_sample: float = setting(
        0.0,
        "of the requests that get a line, whatever the level: 1 for all",
        metavar="SHARE",
        minimum=0.0,
        maximum=1.0,
    )


@dataclass(frozen=True, slots=True)
class MonitoringSettings:
    """Metrics, the status page and traces."""

    metrics: bool = setting(True, "whether metrics and the status page are served over HTTP")
    metrics_port: int | None = count(
        None,
        "where they are served, on the same host; 0 for any that is free. Not set: 8002, or "
        "another if that is taken or `port` is 0",
        metavar="PORT",
        minimum=0,
        maximum=65535,
    )
    trace_endpoint: str = setting(
        "",
        "a collector that takes OTLP over gRPC, such as http://localhost:4317; the environment's "
        "`OTEL_*` variables are followed too",
        metavar="URL",
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
    monitoring: MonitoringSettings = MonitoringSettings()

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
        port = self.monitoring.metrics_port
        if self.monitoring.metrics and port and port == self.server.port:
            text = f"metrics_port and port are both {port}: give one of them another"
            found.append((("monitoring", "metrics_port"), text))
        if self.monitoring.metrics and port and port + self.server.processes > 2**16:
            text = f"metrics_port is {port}, and each process takes one from there on, up to 65535"
            found.append((("monitoring", "metrics_port"), text))
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
