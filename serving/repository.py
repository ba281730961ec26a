"""The model repository: a directory with `MODEL/VERSION/` below it, each holding a program.

VERSION is an integer from 1, as TensorFlow Serving and Triton lay it out. A version that cannot be
loaded is kept with the reason, and stops no other. Names that start with a dot are passed over.

The directory may change while it is served. A version counts once it is complete, which its digests
tell, and a new one takes requests once it has been loaded, has given what its cases expect, and has
been warmed up; only then does the one that it replaces finish what it has, and go.

A repository that does not exist or holds no model ends the server (exit code 2) rather than
leaving it up and not ready: nothing but a change of the command line or of the directory can heal
it, an orchestrator shows a process that ends with a message sooner than one that waits, and it
starts it again by itself should the directory have been late.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slipway.serving.errors import (
    InvalidRequestError,
    NotFoundError,
    StartupError,
    UnavailableError,
    quoted,
)
from slipway.serving.loader import Loader, LoadError
from slipway.serving.model import Model
from slipway.serving.routing import Route
from slipway.serving.versions import (
    Fingerprint,
    Found,
    VersionPolicy,
    fingerprint,
    parse_version,
    scan,
)

__all__ = ["Repository", "State", "VersionStatus"]

_LOGGER = logging.getLogger(__name__)


class State(enum.Enum):
    """Whether a version takes requests; the values are those of RepositoryIndex."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """A line of the repository's index; `version` is 0 for a model that has no version at all."""

    name: str
    version: int
    state: State
    reason: str = ""


@dataclass(slots=True)
class _Version:
    """What is known of a version.

    Attributes:
      state: whether it takes requests.
      reason: why it does not, or why its newest content does not.
      models: what serves its methods, while it is ready.
      tried: the state of the directory that was loaded last, or failed to be.
      seen: the state of the directory at the last look.
    """

    state: State = State.LOADING
    reason: str = ""
    models: list[Model] = field(default_factory=list)
    tried: Fingerprint | None = None
    seen: Fingerprint | None = None


class Repository:
    """The models of one directory."""

    def __init__(
        self,
        directory: Path,
        *,
        policies: Mapping[str, VersionPolicy] | None = None,
        default_policy: VersionPolicy = VersionPolicy(),  # noqa: B008  (it is immutable)
        routes: Mapping[str, Route] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        """Finds the models and versions below `directory`; `update` loads them.

        Args:
          directory: has `MODEL/VERSION/program.pb` below it.
          policies: which versions of a model are served, by its name.
          default_policy: of the other models.
          routes: labels of versions and shares of requests, by model.
          only: the models that are served, until `want` and `unwant` change them; None for all.

        Raises:
          StartupError: it is no directory that can be read, or has no model.
        """
        self._directory = directory
        self._policies = dict(policies or {})
        self._default_policy = default_policy
        self._routes = dict(routes or {})
        self._wanted = None if only is None else set(only)
        self._generation = 0
        self._lock = threading.Lock()
        # Held for the whole of a change, while requests go on.
        self._change = threading.Lock()
        self._versions: dict[tuple[str, int], _Version] = {}
        self._problems: dict[str, str] = {}
        self._models: dict[str, dict[int, Model]] = {}
        found = scan(directory)
        if not found:
            raise StartupError(
                f"the model repository {directory} has no model: expected MODEL/VERSION/program.pb "
                "below it, such as mlp/1/program.pb",
                exit_code=2,
            )
        for model in found:
            if model.problem:
                self._problems[model.name] = model.problem
            for version in self._chosen(model):
                self._versions[model.name, version] = _Version()
        # Models that come later do not decide whether the server as a whole is ready.
        self._required = [model.name for model in found if self._is_wanted(model.name)]
        for name in self._required:
            self._models[name] = {}

    @property
    def names(self) -> list[str]:
        """Returns the models' names, sorted, whether they are ready or not."""
        with self._lock:
            return sorted(self._models)

    @property
    def generation(self) -> int:
        """Returns a number that is another one once `find` may answer otherwise."""
        return self._generation

    @property
    def models(self) -> list[Model]:
        """Returns every version that takes requests."""
        with self._lock:
            return [model for versions in self._models.values() for model in versions.values()]

    @property
    def ready_count(self) -> int:
        """Returns how many versions take requests."""
        with self._lock:
            return sum(item.state is State.READY for item in self._versions.values())

    def update(
        self,
        loader: Loader,
        is_stopping: Callable[[], bool] = lambda: False,
        *,
        name: str | None = None,
        settled: bool = False,
    ) -> None:
        """Makes what is served what the directory holds; after it, no version is LOADING.

        Args:
          loader: loads versions.
          is_stopping: asked before each version; the rest is left when it says yes.
          name: of the one model to look at; None for all.
          settled: whether to leave alone what has changed since the last look, and so may be in the
            middle of being copied.

        Raises:
          StartupError: the directory cannot be read.
        """
        with self._change:
            found = {model.name: model for model in scan(self._directory)}
            names = [name] if name is not None else sorted({*found, *self._known_names()})
            for each in names:
                model = found.get(each, Found(each, (), "it is gone from the repository", True))
                self._update_model(model, loader, is_stopping, settled)

    def want(self, name: str) -> None:
        """Has the model served from the next update on, though it was not to be."""
        if self._wanted is not None:
            self._wanted.add(name)

    def unwant(self, name: str) -> None:
        """Has the model not served any more from the next update on."""
        if self._wanted is None:
            self._wanted = set(self._known_names())
        self._wanted.discard(name)
        with self._lock:
            self._required = [other for other in self._required if other != name]

    def find(self, name: str, version: str, identifier: bytes = b"") -> Model:
        """Returns a version of the model `name`.

        Args:
          name: the model.
          version: a number, a label, or "" for the highest, or where the model's route sends it.
          identifier: the id of the request that it is for.

        Raises:
          InvalidRequestError: `version` is no positive integer and no label, or `name` is empty.
          NotFoundError: there is no such model or version.
          UnavailableError: it is loading, or could not be loaded.
        """
        if not name:
            raise InvalidRequestError("Model name cannot be empty: set model_name")
        route = self._routes.get(name)
        number = self._parse(name, version, route)
        with self._lock:
            if name not in self._models:
                known = ", ".join(repr(item) for item in sorted(self._models)[:20])
                raise NotFoundError(
                    f"Request for unknown model: {quoted(name)} is not found; "
                    f"the models are {known}"
                )
            ready = self._models[name]
            if number is None and ready:
                return ready[_default(ready, route, identifier)]
            if number in ready:
                return ready[number]
            statuses = {
                other: item for (model, other), item in self._versions.items() if model == name
            }
        if number is not None:
            statuses = {other: item for other, item in statuses.items() if other == number}
            if not statuses:
                others = ", ".join(map(str, sorted(ready))) or "none"
                raise NotFoundError(
                    f"Request for unknown model: '{name}' version {number} is not found; "
                    f"the versions that are ready: {others}"
                )
        subject = f"'{name}'" if number is None else f"'{name}' version {number}"
        if any(item.state is State.LOADING for item in statuses.values()):
            raise UnavailableError(f"model {subject} is not at ready state: it is loading")
        raise UnavailableError(
            f"model {subject} is not at ready state: it could not be loaded; "
            "RepositoryIndex and the server's log have the reason"
        )

    def is_split(self, name: str) -> bool:
        """Returns whether the version of a request that names none depends on its id."""
        route = self._routes.get(name)
        return route is not None and bool(route.shares)

    def ready_versions(self, name: str) -> list[int]:
        """Returns the versions of `name` that take requests, ascending."""
        with self._lock:
            return sorted(self._models.get(name, ()))

    def is_ready(self) -> bool:
        """Returns whether every model that was there at the start has a version that is ready."""
        with self._lock:
            return all(self._models.get(name) for name in self._required)

    def index(self) -> list[VersionStatus]:
        """Returns the state of every version, sorted by name and version."""
        with self._lock:
            lines = [
                VersionStatus(name, version, item.state, item.reason)
                for (name, version), item in self._versions.items()
            ]
            lines += [
                VersionStatus(name, 0, State.UNAVAILABLE, problem)
                for name, problem in self._problems.items()
            ]
        return sorted(lines, key=lambda line: (line.name, line.version))

    def close(self) -> None:
        """Waits until every request is answered, and ends the models' threads."""
        for model in self.models:
            model.scheduler.close()

    def _known_names(self) -> set[str]:
        with self._lock:
            return {name for name, _ in self._versions} | set(self._problems)

    def _is_wanted(self, name: str) -> bool:
        return self._wanted is None or name in self._wanted

    def _chosen(self, model: Found) -> list[int]:
        if not self._is_wanted(model.name):
            return []
        return self._policies.get(model.name, self._default_policy).choose(model.versions)

    def _parse(self, name: str, version: str, route: Route | None) -> int | None:
        if not version:
            return None
        if route is not None and version in route.labels:
            return route.labels[version]
        number = parse_version(version)
        if number is None:
            labels = f", or one of the labels {', '.join(route.labels)}" if route else ""
            raise InvalidRequestError(
                f"failed to get model version from specified version string {quoted(version)}: "
                f"version should be an integral value > 0, or empty for the latest{labels}"
            )
        return number

    def _update_model(
        self, model: Found, loader: Loader, is_stopping: Callable[[], bool], settled: bool
    ) -> None:
        name, chosen = model.name, self._chosen(model)
        with self._lock:
            self._problems.pop(name, None)
            if model.problem and (name in self._required or not model.is_missing):
                self._problems[name] = model.problem
            for version in chosen:
                self._versions.setdefault((name, version), _Version())
        for version in chosen:
            if not is_stopping():
                self._update_version(name, version, loader, settled)
        complete = all(self._versions[name, version].models for version in chosen)
        gone = [
            version
            for other, version in list(self._versions)
            if other == name
            and version not in chosen
            # What was to replace it cannot be loaded: it stays for as long as its files do.
            and (complete or version not in model.versions)
        ]
        for version in gone:
            self._remove(name, version)

    def _update_version(self, name: str, version: int, loader: Loader, settled: bool) -> None:
        record = self._versions[name, version]
        path = self._directory / name / str(version)
        now = fingerprint(path)
        is_moving, record.seen = now != record.seen, now
        if now == record.tried or (settled and is_moving):
            return
        record.tried = now
        reason = ""
        try:
            models = loader.load(path, name, version, record.models, self._latest(), self._is_taken)
        except LoadError as error:
            models, reason = [], str(error)
        with self._lock:
            replaced = record.models
            record.reason = reason
            if models:
                record.state, record.models = State.READY, models
                for model in replaced:
                    self._models[model.name].pop(version, None)
                for model in models:
                    self._models.setdefault(model.name, {})[version] = model
                self._generation += 1
            elif replaced:
                record.reason = f"what replaced its files is not served: {reason}"
            else:
                record.state = State.UNAVAILABLE
                self._models.setdefault(name, {})
        if models:
            _LOGGER.info("model '%s' version %d is ready on %s", name, version, models[0].device)
            loader.retire(replaced)
        else:
            _LOGGER.error("model '%s' version %d is unavailable: %s", name, version, reason)

    def _remove(self, name: str, version: int) -> None:
        with self._lock:
            record = self._versions[name, version]
            for model in record.models:
                self._models[model.name].pop(version, None)
                if not self._models[model.name] and model.name not in self._required:
                    del self._models[model.name]
            record.state, record.reason = State.UNLOADING, ""
            self._generation += 1
        for model in record.models:
            model.scheduler.close()
        with self._lock:
            del self._versions[name, version]
        _LOGGER.info("model '%s' version %d is unloaded", name, version)

    def _latest(self) -> dict[str, Model]:
        with self._lock:
            return {name: ready[max(ready)] for name, ready in self._models.items() if ready}

    def _is_taken(self, name: str) -> bool:
        """Returns whether a method's name is that of a model of the repository."""
        return any(model == name for model, _ in self._versions)


def _default(ready: Mapping[int, Model], route: Route | None, identifier: bytes) -> int:
    """Returns the version, among those that are ready, for a request that names none."""
    if route is None:
        return max(ready)
    chosen = route.choose(identifier)
    if chosen is not None and chosen in ready:
        return chosen
    stable = route.labels.get("stable")
    if stable is not None and stable in ready:
        return stable
    shared = {route.labels[label] for label in route.shares}
    return max([version for version in ready if version not in shared] or ready)
