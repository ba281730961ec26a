from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from slipway.serving.control import ControlMode, RepositoryControl
from slipway.serving.errors import (
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from slipway.serving.host import Host
from slipway.serving.loader import Loader
from slipway.serving.model import Environment
from slipway.serving.processors import Processors
from slipway.serving.repository import Repository
from slipway.tests.serving.programs import write_affine


class Controlled:
    """A repository, what controls it, and a sign that it may have changed."""

    def __init__(self, root: Path, mode: ControlMode, poll_seconds: float = 0.01) -> None:
        only: list[str] | None = [] if mode is ControlMode.EXPLICIT else None
        self.repository = Repository(root, only=only)
        self.changed = threading.Condition()
        loader = Loader(Host(Processors(1)), Environment(), snapshot=True)
        self.control = RepositoryControl(
            self.repository, loader, mode, self.on_change, poll_seconds
        )
        self.control.update(lambda: False)
        self.control.follow()

    def on_change(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def wait_for(self, name: str, versions: list[int]) -> bool:
        with self.changed:
            return self.changed.wait_for(
                lambda: self.repository.ready_versions(name) == versions, timeout=60
            )

    def close(self) -> None:
        self.control.close()
        self.repository.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    write_affine(root / "affine" / "1")
    return root


@pytest.mark.parametrize("mode", [ControlMode.FIXED, ControlMode.POLL])
def test_models_are_loaded_when_asked_only_where_that_is_the_mode(
    root: Path, mode: ControlMode
) -> None:
    controlled = Controlled(root, mode)
    with pytest.raises(PreconditionError, match=f"this one runs with {mode.value}"):
        controlled.control.load("affine")
    with pytest.raises(PreconditionError, match="models are unloaded when asked only by"):
        controlled.control.unload("affine")
    controlled.close()


def test_polling_follows_the_directory_and_survives_its_absence(root: Path) -> None:
    controlled = Controlled(root, ControlMode.POLL)
    write_affine(root / "affine" / "2")
    assert controlled.wait_for("affine", [1, 2])
    away = root.with_name("away")
    root.rename(away)
    shutil.rmtree(away / "affine" / "1")
    away.rename(root)
    assert controlled.wait_for("affine", [2])
    controlled.close()


def test_loading_and_unloading(root: Path) -> None:
    controlled = Controlled(root, ControlMode.EXPLICIT)
    assert controlled.repository.ready_versions("affine") == []
    controlled.control.load("affine")
    controlled.control.load("affine")  # once more changes nothing
    assert controlled.repository.ready_versions("affine") == [1]
    write_affine(root / "affine" / "2")
    assert controlled.repository.ready_versions("affine") == [1]
    controlled.control.load("affine")
    assert controlled.repository.ready_versions("affine") == [1, 2]
    controlled.control.unload("affine")
    controlled.control.unload("affine")
    assert controlled.repository.ready_versions("affine") == []
    controlled.close()


def test_what_cannot_be_loaded_says_why(root: Path) -> None:
    controlled = Controlled(root, ControlMode.EXPLICIT)
    with pytest.raises(InvalidRequestError, match="Model name cannot be empty"):
        controlled.control.load("")
    with pytest.raises(NotFoundError, match="failed to load 'nope', no such model"):
        controlled.control.load("nope")
    (root / "affine" / "2").mkdir()
    with pytest.raises(UnavailableError, match="failed to load 'affine': version 2: "):
        controlled.control.load("affine")
    assert controlled.repository.ready_versions("affine") == [1]
    (root / "affine" / "2").rmdir()
    controlled.control.load("affine")
    controlled.close()


def test_a_repository_that_is_not_there_is_said_and_nothing_is_unloaded(root: Path) -> None:
    controlled = Controlled(root, ControlMode.EXPLICIT)
    controlled.control.load("affine")
    root.rename(root.with_name("away"))
    for change in (controlled.control.load, controlled.control.unload):
        with pytest.raises(UnavailableError, match="the model repository cannot be read"):
            change("affine")
    assert controlled.repository.ready_versions("affine") == [1]
    controlled.close()


def test_a_server_that_stops_loads_nothing_more(root: Path) -> None:
    controlled = Controlled(root, ControlMode.EXPLICIT)
    controlled.control.close()
    with pytest.raises(UnavailableError, match="the server stops"):
        controlled.control.load("affine")
    controlled.repository.close()
