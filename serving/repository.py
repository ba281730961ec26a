"""The model repository: a directory with `MODEL/VERSION/` below it, each holding a program.

VERSION is an integer from 1, as TensorFlow Serving and Triton lay it out. A version that cannot be
loaded is kept with the reason, and stops no other. Names that start with a dot are passed over.

The directory may change while it is served. A version counts once it is complete, which its digests
tell, and a new one takes requests once it has been loaded, has given what its cases expect, and has
been warmed up; only then does the one that it replaces finish what it has, and go. The one that is
to be replaced stays for as long as there is nothing better, even if its files have gone.

A repository that does not exist or holds no model ends the server (exit code 2) rather than
leaving it up and not ready: nothing but a change of the command line or of the directory can heal
it, an orchestrator shows a process that ends with a message sooner than one that waits, and it
starts it again by itself should the directory have been late.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from slipway.serving.errors import StartupError
from slipway.serving.loader import Loader, LoadError
from slipway.serving.model import Model
from slipway.serving.routing import Route
from slipway.serving.served import UNLOADED, ServedModels, State, VersionRecord, VersionStatus
from slipway.serving.versions import Found, VersionPolicy, fingerprint, scan

__all__ = ["Repository", "State", "VersionStatus"]

_LOGGER = logging.getLogger(__name__)

_NUMBER = re.compile("[0-9]+")


@dataclass(frozen=True, slots=True)
class _Update:
    """How the directory is followed.

    Attributes:
      loader: loads versions.
      is_stopping: whether to leave the rest.
      on_change: called after each change of what takes requests.
      settled: whether to leave alone what has changed since the last look.
    """

    loader: Loader
    is_stopping: Callable[[], bool]
    on_change: Callable[[], None]
    settled: bool


class Repository(ServedModels):
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
          StartupError: it is no directory that can be read, or lacks the models.
        """
        super().__init__(routes or {})
        self._directory = directory
        self._policies = dict(policies or {})
        self._default_policy = default_policy
        self._wanted = None if only is None else set(only)
        # Held for the whole of a change, while requests go on.
        self._change = threading.Lock()
        found = scan(directory)
        if not found:
            raise StartupError(
                f"the model repository {directory} has no model: expected MODEL/VERSION/program.pb "
                "below it, such as mlp/1/program.pb",
                exit_code=2,
            )
        for model in found:
            for version in self._chosen(model):
                self._versions[model.name, version] = VersionRecord()
        missing = sorted((self._wanted or set()) - {model.name for model in found})
        if missing:
            known = ", ".join(model.name for model in found)
            raise StartupError(
                f"the model repository {directory} has no model {', '.join(missing)} to load; it "
                f"has {known}",
                exit_code=2,
            )
        # Models that come later do not decide whether the server as a whole is ready.
        self._required.update(model.name for model in found if self._is_wanted(model.name))
        self._models.update((name, {}) for name in self._required)

    def update(
        self,
        loader: Loader,
        is_stopping: Callable[[], bool] = lambda: False,
        on_change: Callable[[], None] = lambda: None,
        *,
        name: str | None = None,
        settled: bool = False,
    ) -> None:
        """Makes what is served what the directory holds.

        Args:
          loader: loads versions.
          is_stopping: asked before each version; the rest is left when it says yes.
          on_change: called after each change of what takes requests.
          name: of the one model to look at, to return when its versions that go have answered
            their last requests; None for all, and not to wait.
          settled: whether to leave alone what has changed since the last look, and so may be in the
            middle of being copied.

        Raises:
          StartupError: the directory cannot be read, or has no model any more. What is served goes
            on: a file system that is not mounted looks like that.
        """
        with self._change:
            found = {model.name: model for model in scan(self._directory)}
            if not found:
                raise StartupError(
                    f"the model repository {self._directory} is empty; what is loaded goes on",
                    exit_code=2,
                )
            names = [name] if name is not None else sorted({*found, *self._known_names()})
            how = _Update(loader, is_stopping, on_change, settled)
            for each in names:
                model = found.get(each, Found(each, (), "it is gone from the repository", True))
                self._update_model(model, how)
        on_change()
        if name is not None:
            self._await_drained(name)

    def want(self, name: str) -> None:
        """Has the model served from the next update on, though it was not to be."""
        if self._wanted is not None:
            self._wanted = self._wanted | {name}

    def unwant(self, name: str) -> None:
        """Has the model not served any more from the next update on."""
        wanted = self._known_names() if self._wanted is None else self._wanted
        self._wanted = wanted - {name}
        with self._lock:
            self._required.discard(name)

    def index(self, loadable: Collection[str] = ()) -> list[VersionStatus]:
        if self._wanted is not None and not loadable:
            with contextlib.suppress(StartupError):  # then what is known has to do
                loadable = [model.name for model in scan(self._directory) if model.versions]
        return super().index(loadable)

    def _is_wanted(self, name: str) -> bool:
        return self._wanted is None or name in self._wanted

    def _chosen(self, model: Found) -> list[int]:
        if not self._is_wanted(model.name):
            return []
        return self._policy(model.name).choose(model.versions)

    def _policy(self, name: str) -> VersionPolicy:
        return self._policies.get(name, self._default_policy)

    def _update_model(self, model: Found, how: _Update) -> None:
        name, chosen = model.name, self._chosen(model)
        with self._lock:
            before = self._problems.pop(name, None)
            problem = "" if model.is_missing else model.problem
            if not problem and self._is_wanted(name):
                problem = self._policy(name).problem(model.versions)
            if problem:
                self._problems[name] = problem
            for version in chosen:
                self._versions.setdefault((name, version), VersionRecord())
        if problem and problem != before:
            _LOGGER.error("model '%s': %s", name, problem)
        if model.is_unreadable:
            return  # what is loaded goes on
        for version in chosen:
            if how.is_stopping():
                return
            self._update_version(name, version, chosen, how)
        ready = [bool(self._versions[name, version].models) for version in chosen]
        for other, version in list(self._versions):
            if other == name and version not in chosen:
                self._update_other(model, version, all(ready), any(ready), how)
        if model.is_missing and name not in self._known_names():
            with self._lock:
                # It was taken away in order: the server as a whole does without it.
                self._required.discard(name)
                if not self._models.get(name):
                    self._models.pop(name, None)

    def _update_version(
        self, name: str, version: int, chosen: Collection[int], how: _Update
    ) -> None:
        """Loads a version if it is new, or if there is something new about it."""
        record = self._versions[name, version]
        now = fingerprint(self._path(name, version))
        is_moving, record.seen = now != record.seen, now
        if how.settled and is_moving:
            return
        if now == record.tried and not (record.reason if not how.settled else record.is_failing):
            return
        # What is tried again by itself, with the same files, is still the failure that was counted.
        record.is_failing = record.is_failing and how.settled and now == record.tried
        record.tried = now
        recent, swapped = self._latest(), []
        lack = how.loader.lack_of_memory(self._path(name, version), name)
        if lack and how.loader.swaps:
            swapped = self._swap_out(name, version, chosen, how)
            lack = ""
        if not self._load(name, version, lack, recent, how):
            for other in swapped:
                self._load(name, other, "", recent, how)

    def _load(
        self, name: str, version: int, lack: str, recent: Mapping[str, Model], how: _Update
    ) -> bool:
        """Loads a version in place of what served it so far, and returns whether that went well.

        Args:
          name: of the model.
          version: of the model.
          lack: why it cannot even be tried; "" if it can.
          recent: what to warm it up like.
          how: what loads it, and who is told.
        """
        record = self._versions[name, version]
        try:
            if lack:
                raise LoadError(lack, is_passing=True)
            is_taken = partial(self._is_taken, name)
            models = how.loader.load(self._path(name, version), name, version, recent, is_taken)
        except LoadError as error:
            self._report_failure(name, version, record, error)
            how.on_change()
            return False
        replaced = record.models
        with self._lock:
            for model in replaced:
                self._models[model.name].pop(version, None)
            for model in models:
                self._models.setdefault(model.name, {})[version] = model
            if not self._models.get(name):
                self._models.pop(name, None)  # its methods all have names of their own
            self._loads[name, True] += 1
            record.state, record.models, record.reason = State.READY, models, ""
            record.is_failing = False
            self._generation += 1
        _LOGGER.info("model '%s' version %d is ready on %s", name, version, models[0].device)
        how.on_change()
        self._drain((name, version), replaced)
        return True

    def _report_failure(
        self, name: str, version: int, record: VersionRecord, error: LoadError
    ) -> None:
        reason = str(error)
        with self._lock:
            if record.models:
                reason = f"what replaced its files is not served: {reason}"
            else:
                record.state = State.UNAVAILABLE
                self._models.setdefault(name, {})
            is_news = reason != record.reason
            if record.is_failing and error.is_passing:
                # How much memory is free is another number at each look.
                is_news = _NUMBER.sub("", reason) != _NUMBER.sub("", record.reason)
            else:
                self._loads[name, False] += 1
            record.reason, record.is_failing = reason, error.is_passing
        if is_news:
            what = "goes on with its old content" if record.models else "is unavailable"
            _LOGGER.error("model '%s' version %d %s: %s", name, version, what, reason)

    def _swap_out(
        self, name: str, version: int, chosen: Collection[int], how: _Update
    ) -> list[int]:
        """Unloads what a version replaces, to make room; returns what could be loaded again."""
        others = [
            other
            for (model, other), record in self._versions.items()
            if model == name and record.models and (other == version or other not in chosen)
        ]
        for other in others:
            _LOGGER.warning("model '%s' version %d is unloaded, to make room", name, other)
            record = self._versions[name, other]
            self._drain((name, other), self._take_out(record, State.LOADING, "")).join()
        how.on_change()
        return [other for other in others if other != version]

    def _update_other(
        self, model: Found, version: int, all_ready: bool, any_ready: bool, how: _Update
    ) -> None:
        """Unloads or forgets a version that is not to be served, once nothing depends on it."""
        name = model.name
        record = self._versions[name, version]
        is_there = version in model.versions
        if not is_there and how.settled and record.seen:
            record.seen = ()  # it may be being replaced
            return
        if record.models:
            if not (all_ready or (any_ready and not is_there)):
                if not is_there:
                    # In order to answer requests rather than none.
                    record.reason = "it is gone from the repository, and nothing else is ready"
                return
            self._drain((name, version), self._take_out(record, State.UNAVAILABLE, UNLOADED))
            _LOGGER.info("model '%s' version %d is unloaded", name, version)
        if is_there and not self._is_wanted(name):
            record.tried, record.reason, record.is_failing = None, UNLOADED, False
            record.state = State.UNAVAILABLE
        else:
            with self._lock:
                del self._versions[name, version]
        how.on_change()

    def _path(self, name: str, version: int) -> Path:
        return self._directory / name / str(version)
