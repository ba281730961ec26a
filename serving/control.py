"""Changes of what is served: by the clock, or because someone asks for them."""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable

from slipway.serving.errors import (
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    StartupError,
    UnavailableError,
    quoted,
)
from slipway.serving.loader import Loader
from slipway.serving.repository import Repository

__all__ = ["ControlMode", "RepositoryControl"]

_LOGGER = logging.getLogger(__name__)


class ControlMode(enum.Enum):
    """Whether and how what is served follows the repository."""

    FIXED = "fixed"
    POLL = "poll"
    EXPLICIT = "explicit"


class RepositoryControl:
    """Keeps what is served in step with the repository's directory."""

    def __init__(
        self,
        repository: Repository,
        loader: Loader,
        mode: ControlMode,
        on_change: Callable[[], None],
        poll_seconds: float,
    ) -> None:
        """Changes nothing yet.

        Args:
          repository: what is served.
          loader: loads versions.
          mode: FIXED: nothing changes after the first `update`. POLL: the directory is looked at
            again and again. EXPLICIT: models are loaded and unloaded when asked.
          on_change: called after whatever may have been a change.
          poll_seconds: how long to wait between looks.
        """
        self._repository = repository
        self._loader = loader
        self._mode = mode
        self._on_change = on_change
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def update(self, is_stopping: Callable[[], bool]) -> None:
        """Loads what is to be served at the start.

        Args:
          is_stopping: asked before each version; the rest is not loaded when it says yes.
        """
        self._repository.update(self._loader, is_stopping, self._on_change)

    def follow(self) -> None:
        """Begins to look for changes, if that is the mode."""
        if self._mode is ControlMode.POLL:
            self._thread = threading.Thread(target=self._poll, name="repository", daemon=True)
            self._thread.start()

    def load(self, name: str) -> None:
        """Serves the model's versions as they are now, and returns when they are ready.

        Raises:
          PreconditionError: the server does not load models when asked.
          InvalidRequestError: there is no name.
          NotFoundError: the repository has no such model.
          UnavailableError: a version cannot be served; if it was to replace another, that stays.
        """
        self._require_explicit(name, "loaded")
        self._repository.want(name)
        self._update(name)
        lines = [line for line in self._repository.index() if line.name == name]
        if not any(line.version for line in lines):
            self._repository.unwant(name)
            reason = "".join(f": {line.reason}" for line in lines)
            raise NotFoundError(
                f"failed to load {quoted(name)}, no such model in the repository{reason}"
            )
        reasons = [f"version {line.version}: {line.reason}" for line in lines if line.reason]
        if reasons:
            raise UnavailableError(f"failed to load {quoted(name)}: {'; '.join(reasons)}")
        if self._stop.is_set():
            raise UnavailableError(f"failed to load {quoted(name)}: the server stops")

    def unload(self, name: str) -> None:
        """Stops serving the model, and returns when its last request has been answered.

        Raises:
          PreconditionError: the server does not unload models when asked.
          InvalidRequestError: there is no name.
          UnavailableError: the repository cannot be read.
        """
        self._require_explicit(name, "unloaded")
        self._repository.unwant(name)
        self._update(name)

    def close(self) -> None:
        """Ends the looking for changes. A version that is being loaded is not waited for."""
        self._stop.set()

    @property
    def is_busy(self) -> bool:
        """Returns whether a thread still looks for changes."""
        return self._thread is not None and self._thread.is_alive()

    def _require_explicit(self, name: str, done: str) -> None:
        if self._mode is not ControlMode.EXPLICIT:
            raise PreconditionError(
                f"models are {done} when asked only by a server that runs with "
                f"--model-control=explicit; this one runs with {self._mode.value}"
            )
        if not name:
            raise InvalidRequestError("Model name cannot be empty: set model_name")

    def _poll(self) -> None:
        problem = ""
        while not self._stop.wait(self._poll_seconds):
            try:
                self._repository.update(
                    self._loader, self._stop.is_set, self._on_change, settled=True
                )
                problem = ""
            except StartupError as error:
                if str(error) != problem:
                    # What is loaded goes on; the directory may come back.
                    _LOGGER.error("%s", error)
                    problem = str(error)
            except Exception:
                _LOGGER.exception("the repository cannot be brought up to date")

    def _update(self, name: str) -> None:
        try:
            self._repository.update(self._loader, self._stop.is_set, self._on_change, name=name)
        except StartupError as error:
            _LOGGER.error("%s", error)
            raise UnavailableError(
                "the model repository cannot be read, or is empty; the server's log has the cause"
            ) from error
