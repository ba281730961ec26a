"""Which versions of which models take requests."""

from __future__ import annotations

import enum
import gc
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from slipway.program.contract import DEFAULT_METHOD
from slipway.serving.errors import InvalidRequestError, NotFoundError, UnavailableError, quoted
from slipway.serving.model import Model
from slipway.serving.routing import Route
from slipway.serving.versions import Fingerprint, parse_version

__all__ = ["UNLOADED", "ServedModels", "State", "VersionRecord", "VersionStatus"]

UNLOADED = "unloaded"
"""The reason of versions that were served, and were to be no longer."""

_NOT_LOADED = "not loaded"


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
class VersionRecord:
    """What is known of a version.

    Attributes:
      state: whether it takes requests.
      reason: why it does not, or why its newest content does not.
      models: what serves its methods, while it is ready.
      tried: the state of the directory that was loaded last, or failed to be.
      seen: the state of the directory at the last look; empty if it was not there.
      is_failing: whether to load it again though the directory is as it was.
    """

    state: State = State.LOADING
    reason: str = ""
    models: list[Model] = field(default_factory=list)
    tried: Fingerprint | None = None
    seen: Fingerprint | None = None
    is_failing: bool = False


class ServedModels:
    """The versions that take requests, and those that do not any more, or cannot.

    Requests look things up while a subclass changes them, in one thread at a time.
    """

    def __init__(self, routes: Mapping[str, Route]) -> None:
        """Makes it without any model.

        Args:
          routes: labels of versions and shares of requests, by model.
        """
        self._routes = dict(routes)
        self._generation = 0
        self._lock = threading.Lock()
        self._versions: dict[tuple[str, int], VersionRecord] = {}
        self._problems: dict[str, str] = {}
        self._models: dict[str, dict[int, Model]] = {}
        self._loads: Counter[tuple[str, bool]] = Counter()
        # Those that decide whether the server as a whole is ready.
        self._required: set[str] = set()
        # What takes no new requests and has not answered the last one.
        self._draining: dict[threading.Thread, tuple[str, int]] = {}

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

    def find(self, name: str, version: str, identifier: bytes = b"") -> Model:
        """Returns a version of the model `name`.

        Args:
          name: the model.
          version: a number, a label, or "" for the highest, or where the model's route sends it.
          identifier: the id of the request that it is for.

        Raises:
          InvalidRequestError: `version` is no positive integer and no label, or `name` is empty.
          NotFoundError: there is no such model or version, or its methods have names of their own.
          UnavailableError: it is loading, or could not be loaded.
        """
        if not name:
            raise InvalidRequestError("Model name cannot be empty: set model_name")
        route = self._routes.get(name)
        number = self._parse(version, route)
        with self._lock:
            ready = self._models.get(name, {})
            if number is None and ready:
                return ready[_default(ready, route, identifier)]
            if number in ready:
                return ready[number]
            statuses = self._records(name)
            if name not in self._models and not statuses:
                statuses = self._records_of_owner(name)
            if name not in self._models and not statuses:
                known = ", ".join(repr(item) for item in sorted(self._models)[:20])
                if len(self._models) > 20:
                    known += f" and {len(self._models) - 20} more"
                others = f"the models are {known}" if known else "none is loaded"
                raise NotFoundError(
                    f"Request for unknown model: {quoted(name)} is not found; {others}"
                )
        if number is not None:
            statuses = {other: item for other, item in statuses.items() if other == number}
            if not statuses:
                others = ", ".join(map(str, sorted(ready))) or "none"
                raise NotFoundError(
                    f"Request for unknown model: '{name}' version {number} is not found; "
                    f"the versions that are ready: {others}"
                )
        subject = f"'{name}'" if number is None else f"'{name}' version {number}"
        if statuses and all(item.reason == UNLOADED for item in statuses.values()):
            raise UnavailableError(
                f"Request for unknown model: {subject} has no available versions: it is unloaded"
            )
        if any(item.state is State.LOADING for item in statuses.values()):
            raise UnavailableError(f"model {subject} is not at ready state: it is loading")
        callable_names = {model.name for item in statuses.values() for model in item.models}
        if callable_names:
            raise NotFoundError(
                f"Request for unknown model: {subject} has no method {DEFAULT_METHOD}; "
                f"clients call {', '.join(map(repr, sorted(callable_names)))}"
            )
        raise UnavailableError(
            f"model {subject} is not at ready state: it could not be loaded; "
            "RepositoryIndex and the server's log have the reason"
        )

    def is_split(self, name: str) -> bool:
        """Returns whether the version of a request that names none depends on its id."""
        route = self._routes.get(name)
        return route is not None and bool(route.shares)

    def loads(self) -> dict[tuple[str, bool], int]:
        """Returns how many versions were loaded, by model and whether that went well."""
        with self._lock:
            return dict(self._loads)

    def ready_versions(self, name: str) -> list[int]:
        """Returns the versions of `name` that take requests, ascending."""
        with self._lock:
            return sorted(self._models.get(name, ()))

    def is_ready(self) -> bool:
        """Returns whether every model that was there at the start has a version that is ready."""
        with self._lock:
            # A program without `forward` serves nothing under the model's own name.
            ready = {name for (name, _), record in self._versions.items() if record.models}
            return self._required <= ready

    def index(self, loadable: Collection[str] = ()) -> list[VersionStatus]:
        """Returns the state of every version, sorted by name and version.

        Args:
          loadable: names of models that could be loaded; those that are not are listed without a
            version.
        """
        with self._lock:
            lines = {
                (name, version): VersionStatus(name, version, item.state, item.reason)
                for (name, version), item in self._versions.items()
            }
            for name, problem in self._problems.items():
                lines[name, 0] = VersionStatus(name, 0, State.UNAVAILABLE, problem)
            for key in self._draining.values():
                if key not in lines or lines[key].state is State.UNAVAILABLE:
                    lines[key] = VersionStatus(*key, State.UNLOADING)
            known = {name for name, _ in lines}
            for name in loadable:
                if name not in known:
                    lines[name, 0] = VersionStatus(name, 0, State.UNAVAILABLE, _NOT_LOADED)
        return [lines[key] for key in sorted(lines)]

    def close(self) -> None:
        """Waits until every request is answered, and ends the models' threads."""
        for model in self.models:
            model.scheduler.close()
        self._await_drained(None)

    def _records(self, name: str) -> dict[int, VersionRecord]:
        return {version: item for (model, version), item in self._versions.items() if model == name}

    def _records_of_owner(self, name: str) -> dict[int, VersionRecord]:
        """Returns the versions of a model that may have the method `name`, once one is ready."""
        for model in sorted({model for model, _ in self._versions}):
            records = self._records(model) if name.startswith(f"{model}.") else {}
            if records and not any(item.models for item in records.values()):
                return records
        return {}

    def _known_names(self) -> set[str]:
        with self._lock:
            return {name for name, _ in self._versions} | set(self._problems)

    def _parse(self, version: str, route: Route | None) -> int | None:
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

    def _take_out(self, record: VersionRecord, state: State, reason: str) -> list[Model]:
        """Sends a version no new requests; returns what served it."""
        with self._lock:
            for model in record.models:
                del self._models[model.name][model.version]
                if not self._models[model.name] and model.name not in self._required:
                    del self._models[model.name]
            models, record.models = record.models, []
            record.state, record.reason = state, reason
            self._generation += 1
        return models

    def _drain(self, key: tuple[str, int], models: Sequence[Model]) -> threading.Thread:
        """Lets models finish what they have, and frees them, in the thread that it returns."""

        def close() -> None:
            for model in models:
                model.scheduler.close()
            gc.unfreeze()  # what was there at the start may be garbage now
            with self._lock:
                self._draining.pop(thread)

        thread = threading.Thread(target=close, name="drain", daemon=True)
        with self._lock:
            self._draining[thread] = key
            thread.start()
        return thread

    def _await_drained(self, name: str | None) -> None:
        """Waits until what goes has gone: of one model, or of all."""
        with self._lock:
            threads = [
                thread for thread, (owner, _) in self._draining.items() if name in (None, owner)
            ]
        for thread in threads:
            thread.join()

    def _latest(self) -> dict[str, Model]:
        with self._lock:
            return {name: ready[max(ready)] for name, ready in self._models.items() if ready}

    def _is_taken(self, owner: str, name: str) -> bool:
        """Returns whether a name that a model would use belongs to another one."""
        return any(
            other == name or any(model.name == name for model in record.models)
            for (other, _), record in self._versions.items()
            if other != owner
        )


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
