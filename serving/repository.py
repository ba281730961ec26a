"""The model repository: a directory with `MODEL/VERSION/` below it, each holding a program.

VERSION is an integer from 1, as TensorFlow Serving and Triton lay it out. A version that cannot be
loaded is kept with the reason, and stops no other. Names that start with a dot are passed over.

A repository that does not exist or holds no model ends the server (exit code 2) rather than
leaving it up and not ready: nothing but a change of the command line or of the directory can heal
it, an orchestrator shows a process that ends with a message sooner than one that waits, and it
starts it again by itself should the directory have been late.
"""

from __future__ import annotations

import enum
import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from slipway.program import ProgramError, load, verify
from slipway.program.shards import Verification
from slipway.serving.errors import (
    InvalidRequestError,
    NotFoundError,
    StartupError,
    UnavailableError,
    quoted,
)
from slipway.serving.model import Environment, Model, models_of
from slipway.serving.signature import SignatureError

__all__ = ["Repository", "State", "VersionStatus"]

_LOGGER = logging.getLogger(__name__)

_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class State(enum.Enum):
    """Whether a version takes requests; the values are those of RepositoryIndex."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """A line of the repository's index; `version` is 0 for a model that has no version at all."""

    name: str
    version: int
    state: State
    reason: str = ""


class Repository:
    """The models of one directory, loaded once."""

    def __init__(
        self,
        directory: Path,
        verification: Verification = "full",
        environment: Environment = Environment(),  # noqa: B008  (it is immutable)
    ) -> None:
        """Finds the models and versions below `directory`; `load` loads them.

        Args:
          directory: has `MODEL/VERSION/program.pb` below it.
          verification: what of the weights is compared with what was written.
          environment: what the models run in.

        Raises:
          StartupError: it is no directory that can be read, or has no model.
        """
        self._directory = directory
        self._verification = verification
        self._environment = environment
        self._generation = 0
        self._lock = threading.Lock()
        self._statuses: dict[tuple[str, int], VersionStatus] = {}
        self._models: dict[str, dict[int, Model]] = {}
        for status in _scan(directory):
            self._statuses[status.name, status.version] = status
            self._models.setdefault(status.name, {})

    @property
    def names(self) -> list[str]:
        """Returns the models' names, sorted, whether they are ready or not."""
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
            return sum(item.state is State.READY for item in self._statuses.values())

    def load(
        self,
        device: torch.device,
        is_stopping: Callable[[], bool] = lambda: False,
        custom_ops: Collection[str] = (),
    ) -> None:
        """Loads every version onto `device`; after it, none is LOADING.

        Args:
          device: where the programs run.
          custom_ops: namespaces of operators, beside torch's own, that programs may call.
          is_stopping: asked before each version; the rest is not loaded when it says yes.
        """
        for (name, version), status in sorted(self._statuses.items()):
            if status.state is not State.LOADING or is_stopping():
                continue
            models: list[Model] = []
            reason = ""
            path = self._directory / name / str(version)
            try:
                program = load(path, device, custom_ops=custom_ops, verify=self._verification)
                verify(program)
                models = models_of(program, name, version, device, self._environment)
                self._require_free_names(name, models)
            except (ProgramError, SignatureError) as error:
                # A path of the server's is nobody's business who can reach its port.
                reason = str(error).replace(str(self._directory) + os.sep, "")
            except Exception as error:
                _LOGGER.exception("cannot load model '%s' version %d", name, version)
                reason = f"{type(error).__name__} while loading; the server's log has the cause"
            with self._lock:
                state = State.READY if models else State.UNAVAILABLE
                self._statuses[name, version] = VersionStatus(name, version, state, reason)
                for model in models:
                    self._models.setdefault(model.name, {})[version] = model
                self._generation += 1
            if not models:
                _LOGGER.error("model '%s' version %d is unavailable: %s", name, version, reason)
            else:
                _LOGGER.info("model '%s' version %d is ready on %s", name, version, device)

    def _require_free_names(self, name: str, models: Sequence[Model]) -> None:
        """Raises SignatureError if a method's name is that of another model of the repository."""
        for model in models:
            if model.name != name and any(other == model.name for other, _ in self._statuses):
                raise SignatureError(
                    f"its method would be served as '{model.name}', which is another model's name"
                )

    def find(self, name: str, version: str) -> Model:
        """Returns the version `version` of the model `name`, or its latest if `version` is "".

        Raises:
          InvalidRequestError: `version` is no positive integer, or `name` is empty.
          NotFoundError: there is no such model or version.
          UnavailableError: it is loading, or could not be loaded.
        """
        number = _parse_version(version)
        if not name:
            raise InvalidRequestError("Model name cannot be empty: set model_name")
        with self._lock:
            if name not in self._models:
                known = ", ".join(repr(item) for item in sorted(self._models)[:20])
                raise NotFoundError(
                    f"Request for unknown model: {quoted(name)} is not found; "
                    f"the models are {known}"
                )
            ready = self._models[name]
            if number is None and ready:
                return ready[max(ready)]
            if number in ready:
                return ready[number]
            statuses = [item for item in self._statuses.values() if item.name == name]
        if number is not None:
            statuses = [item for item in statuses if item.version == number]
            if not statuses:
                others = ", ".join(map(str, sorted(ready))) or "none"
                raise NotFoundError(
                    f"Request for unknown model: '{name}' version {number} is not found; "
                    f"the versions that are ready: {others}"
                )
        subject = f"'{name}'" if number is None else f"'{name}' version {number}"
        if any(item.state is State.LOADING for item in statuses):
            raise UnavailableError(f"model {subject} is not at ready state: it is loading")
        raise UnavailableError(
            f"model {subject} is not at ready state: it could not be loaded; "
            "RepositoryIndex and the server's log have the reason"
        )

    def close(self) -> None:
        """Waits until every request is answered, and ends the models' threads."""
        for model in self.models:
            model.scheduler.close()

    def ready_versions(self, name: str) -> list[int]:
        """Returns the versions of `name` that take requests, ascending."""
        with self._lock:
            return sorted(self._models.get(name, ()))

    def is_ready(self) -> bool:
        """Returns whether every model has a version that takes requests."""
        with self._lock:
            return all(self._models.values())

    def index(self) -> list[VersionStatus]:
        """Returns the state of every version, sorted by name and version."""
        with self._lock:
            return [self._statuses[key] for key in sorted(self._statuses)]


def _scan(directory: Path) -> Iterator[VersionStatus]:
    """Yields each version below `directory`, as LOADING, and what cannot be one with the reason."""
    try:
        entries = [entry for entry in os.scandir(directory) if _is_listed(entry)]
    except OSError as error:
        raise StartupError(
            f"cannot read the model repository {directory}: {error.strerror}", exit_code=2
        ) from error
    if not entries:
        raise StartupError(
            f"the model repository {directory} has no model: expected MODEL/VERSION/program.pb "
            "below it, such as mlp/1/program.pb",
            exit_code=2,
        )
    for entry in entries:
        if _MODEL_NAME.fullmatch(entry.name) is None:
            reason = "the name must be letters, digits and any of _.+-, at most 128 of them"
            yield VersionStatus(entry.name, 0, State.UNAVAILABLE, reason)
            continue
        found = sorted(item.name for item in os.scandir(entry.path) if _is_listed(item))
        versions = [name for name in found if _VERSION.fullmatch(name)]
        for name in set(found).difference(versions):
            _LOGGER.warning("%s/%s is passed over: it is no version", entry.name, name)
        if not versions:
            reason = f"it has no version: expected {entry.name}/1/program.pb, or a higher integer"
            yield VersionStatus(entry.name, 0, State.UNAVAILABLE, reason)
        for name in versions:
            yield VersionStatus(entry.name, int(name), State.LOADING)


def _is_listed(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.is_dir()


def _parse_version(text: str) -> int | None:
    if not text:
        return None
    if _VERSION.fullmatch(text) is None:
        raise InvalidRequestError(
            f"failed to get model version from specified version string {quoted(text)}: version "
            "should be an integral value > 0, or empty for the latest"
        )
    return int(text)
