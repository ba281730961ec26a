"""`--check`: whatever can be found wrong with a configuration without serving."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from slipway.program.container import load_contracts
from slipway.program.errors import ProgramError
from slipway.serving.command_line import CommandLine
from slipway.serving.configuration import Configuration
from slipway.serving.configuration_file import ConfigurationError
from slipway.serving.credentials import TokenFile
from slipway.serving.errors import StartupError
from slipway.serving.security import doubts, tls_files
from slipway.serving.versions import Found, VersionPolicy, name_clash, scan, served_name

__all__ = ["check"]


def check(line: CommandLine) -> None:
    """Looks at everything that the configuration names, and warns on stderr of what may be meant.

    It loads no program, and takes no port: a server may have it.

    Raises:
      ConfigurationError: something must change; it has all that was found.
    """
    settings = line.configuration
    problems: list[str] = []

    def attempt(path: tuple[str, str], look: Callable[[], object]) -> None:
        try:
            look()
        except StartupError as error:
            problems.append(line.problem(path, str(error)))

    found: list[Found] = []
    attempt(("server", "host"), lambda: _resolve(settings.server.host))
    attempt(("security", "tls_certificate"), lambda: tls_files(settings.security))
    for name in ("inference_tokens", "control_tokens"):
        attempt(("security", name), partial(_tokens, getattr(settings.security, name)))
    attempt(("repository", "path"), lambda: found.extend(_models(settings)))
    attempt(("server", "device"), lambda: _device(settings.server.device, "device"))
    for name, model in settings.models.items():
        if model.device is not None:
            attempt(("models", name), partial(_device, model.device, "device"))
    attempt(("server", "custom_ops"), lambda: _custom_ops(settings))
    attempt(("monitoring", "trace_endpoint"), lambda: _tracing(settings.monitoring.trace_endpoint))
    problems += [line.problem(("repository", "path"), text) for text in _clashes(settings, found)]
    if problems:
        raise ConfigurationError(problems)
    for text in [*doubts(settings.security), *_doubts(line, found)]:
        print(f"slipway: warning: {text}", file=sys.stderr)


def _resolve(host: str) -> None:
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise StartupError(
            f"host is {host!r}, which has no address: {error}", exit_code=2
        ) from error


def _tokens(path: str | None) -> None:
    if path is not None:
        TokenFile(Path(path))


def _models(settings: Configuration) -> list[Found]:
    directory = Path(settings.repository.path or "")
    found = scan(directory)
    if not found:
        raise StartupError(f"the model repository {directory} has no model", exit_code=2)
    names = {model.name for model in found}
    missing = [name for name in settings.repository.load_model if name not in names]
    if missing and settings.repository.model_control == "explicit":
        raise StartupError(
            f"the model repository {directory} has no model {', '.join(missing)} to load",
            exit_code=2,
        )
    return found


def _chosen(settings: Configuration, found: list[Found]) -> list[tuple[Path, str, int]]:
    """Returns path, model and version of what would be served, in the order of loading."""
    files = settings.repository
    chosen = []
    for model in found:
        if files.model_control == "explicit" and model.name not in files.load_model:
            continue
        for version in _policy(settings, model.name).choose(model.versions):
            path = Path(files.path or "", model.name, str(version))
            chosen.append((path, model.name, version))
    return chosen


def _policy(settings: Configuration, model: str) -> VersionPolicy:
    given = settings.models[model].version_policy if model in settings.models else None
    return VersionPolicy.parse(given or settings.repository.version_policy)


def _clashes(settings: Configuration, found: list[Found]) -> list[str]:
    """Returns which versions are not served since a name of theirs means another model already."""
    chosen = _chosen(settings, found)
    owners = {model: model for _, model, _ in chosen}
    texts = []
    for path, model, version in chosen:
        names = _served_names(path, model)
        taken = [name for name in names if owners.get(name, model) != model]
        if taken:
            texts.append(f"model '{model}' version {version}: {name_clash(taken[0])}")
        else:
            owners |= dict.fromkeys(names, model)
    return texts


def _served_names(path: Path, model: str) -> list[str]:
    """Returns what clients would call the methods of a program; none of one that is broken."""
    try:
        methods = load_contracts(path)
    except ProgramError:
        return []
    return [served_name(model, method, methods) for method in methods]


def _device(device: str, setting: str) -> None:
    from slipway.serving.devices import resolve_device  # with torch, which takes its time

    resolve_device(device, setting)


def _custom_ops(settings: Configuration) -> None:
    from slipway.program.custom_ops import CustomOpsError, load_custom_ops

    try:
        load_custom_ops(settings.server.custom_ops)
    except CustomOpsError as error:
        raise StartupError(str(error), exit_code=2) from error


def _tracing(endpoint: str) -> None:
    from slipway.serving.tracing import RequestTracer, is_configured

    if is_configured(endpoint):
        RequestTracer(endpoint).close()


def _doubts(line: CommandLine, found: list[Found]) -> list[str]:
    """Returns what may yet become right, with a version that is to come, and is hardly meant."""
    settings = line.configuration
    versions = {model.name: model.versions for model in found}
    texts = [f"model '{model.name}': {model.problem}" for model in found if model.problem]
    for each in found:
        given = settings.models[each.name].version_policy if each.name in settings.models else None
        if problem := _policy(settings, each.name).problem(each.versions):
            path = ("models", each.name) if given else ("repository", "version_policy")
            texts.append(line.problem(path, f"model '{each.name}': {problem}"))
    files = settings.repository
    if files.load_model and files.model_control != "explicit":
        text = f'load_model does nothing with model_control = "{files.model_control}"'
        texts.append(line.problem(("repository", "load_model"), text))
    for name in files.load_model:
        if name not in versions:
            text = f"load_model names '{name}', which the repository does not have"
            texts.append(line.problem(("repository", "load_model"), text))
    for name, model in settings.models.items():
        if name not in versions:
            text = f"the repository has no model '{name}'"
            texts.append(line.problem(("models", name), text))
            continue
        served = _policy(settings, name).choose(versions[name])
        for label, version in model.labels.items():
            if version not in served:
                text = (
                    f"the label {label!r} of model '{name}' is version {version}, which is not "
                    f"served; the versions that are: {', '.join(map(str, served)) or 'none'}"
                )
                texts.append(line.problem(("models", name, "labels"), text))
    return texts
