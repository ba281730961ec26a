from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipway.serving.errors import (
    InvalidRequestError,
    NotFoundError,
    StartupError,
    UnavailableError,
)
from slipway.serving.host import Host
from slipway.serving.loader import Loader
from slipway.serving.model import Environment
from slipway.serving.processors import Processors
from slipway.serving.repository import Repository, State
from slipway.tests.serving.programs import write_affine

CPU = Host(Processors(1))
LOADER = Loader(CPU, Environment())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with versions 2 and 10 of `good`, and models that are broken in every way."""
    write_affine(tmp_path / "good" / "2")
    write_affine(tmp_path / "good" / "10")
    write_affine(tmp_path / "good" / "11")
    program = tmp_path / "good" / "11" / "program.pb"
    program.write_bytes(program.read_bytes()[:-1])
    (tmp_path / "empty_version" / "1").mkdir(parents=True)
    (tmp_path / "no_version" / "v1").mkdir(parents=True)
    (tmp_path / "zero" / "0").mkdir(parents=True)
    (tmp_path / "bad name" / "1").mkdir(parents=True)
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    (tmp_path / "README").write_text("not a model")
    return tmp_path


@pytest.fixture
def repository(root: Path) -> Iterator[Repository]:
    """It, with what can be loaded of it."""
    with contextlib.closing(Repository(root)) as made:
        made.update(LOADER)
        yield made


def test_a_directory_that_does_not_exist_is_exit_code_2(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"cannot read .*missing: No such file") as caught:
        Repository(tmp_path / "missing")
    assert caught.value.exit_code == 2


def test_a_directory_without_models_is_exit_code_2(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"has no model: expected MODEL/VERSION/program.pb"):
        Repository(tmp_path)


def test_how_much_of_the_weights_is_compared_can_be_said(tmp_path: Path) -> None:
    write_affine(tmp_path / "affine" / "1")
    (shard,) = (tmp_path / "affine" / "1" / "weights").iterdir()
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for verification, versions in (("full", []), ("sizes", [1])):
        loader = Loader(CPU, Environment(), verification=verification)  # type: ignore[arg-type]
        with contextlib.closing(Repository(tmp_path)) as repository:
            repository.update(loader)
            assert repository.ready_versions("affine") == versions


def test_before_loading_every_version_is_loading(root: Path) -> None:
    repository = Repository(root)
    with pytest.raises(UnavailableError, match="'good' is not at ready state: it is loading"):
        repository.find("good", "")
    assert not repository.is_ready()


def test_the_default_is_the_highest_version_that_is_ready(repository: Repository) -> None:
    assert repository.ready_versions("good") == [2, 10]
    assert repository.find("good", "").version == 10
    assert repository.find("good", "2").version == 2


def test_a_broken_version_stops_no_other_and_keeps_its_reason(
    root: Path, repository: Repository
) -> None:
    states = {(item.name, item.version): item for item in repository.index()}
    assert {key: item.state for key, item in states.items()} == {
        ("bad name", 0): State.UNAVAILABLE,
        ("empty_version", 1): State.UNAVAILABLE,
        ("good", 2): State.READY,
        ("good", 10): State.READY,
        ("good", 11): State.UNAVAILABLE,
        ("no_version", 0): State.UNAVAILABLE,
        ("zero", 0): State.UNAVAILABLE,
    }
    assert "good/11" in states["good", 11].reason
    assert "expected no_version/1/program.pb" in states["no_version", 0].reason
    assert "letters, digits" in states["bad name", 0].reason
    assert not any(str(root) in item.reason for item in states.values())
    assert not repository.is_ready()
    assert repository.ready_count == 2
    with pytest.raises(UnavailableError, match="version 11 is not at ready state: it could not"):
        repository.find("good", "11")


def test_a_model_without_forward_is_ready_and_has_no_name_of_its_own(tmp_path: Path) -> None:
    write_affine(tmp_path / "two" / "1", methods=("encode", "decode"))
    with contextlib.closing(Repository(tmp_path)) as repository:
        assert repository.names == ["two"]
        repository.update(LOADER)
        assert repository.is_ready()
        assert repository.names == ["two.decode", "two.encode"]
        for version in ("", "1"):
            with pytest.raises(
                NotFoundError,
                match=r"has no method forward; clients call 'two.decode', 'two.encode'",
            ):
                repository.find("two", version)
            assert repository.find("two.encode", version).version == 1


def test_a_version_without_forward_is_no_default_of_the_model(tmp_path: Path) -> None:
    write_affine(tmp_path / "two" / "1")
    write_affine(tmp_path / "two" / "2", methods=("encode", "decode"))
    with contextlib.closing(Repository(tmp_path)) as repository:
        repository.update(LOADER)
        assert repository.is_ready()
        assert repository.find("two", "").version == 1
        with pytest.raises(NotFoundError, match="'two' version 2 has no method forward"):
            repository.find("two", "2")


def test_a_method_is_unavailable_while_no_version_of_its_model_is_ready(tmp_path: Path) -> None:
    write_affine(tmp_path / "two" / "1", methods=("encode", "decode.fast"))
    with contextlib.closing(Repository(tmp_path)) as repository:
        for name in ("two.encode", "two.decode.fast"):
            for version in ("", "1"):
                with pytest.raises(UnavailableError, match=rf"'{name}'.* it is loading"):
                    repository.find(name, version)
        program = tmp_path / "two" / "1" / "program.pb"
        program.write_bytes(program.read_bytes()[:-1])
        repository.update(LOADER)
        with pytest.raises(UnavailableError, match=r"'two.encode' .* it could not be loaded"):
            repository.find("two.encode", "")
        with pytest.raises(NotFoundError, match="'twofold' is not found"):
            repository.find("twofold", "")
        write_affine(tmp_path / "two" / "2", methods=("encode", "decode"))
        repository.update(LOADER)
        assert repository.find("two.encode", "").version == 2
        with pytest.raises(NotFoundError, match=r"'two.other' is not found; the models are"):
            repository.find("two.other", "")


def test_the_log_says_once_why_a_model_has_no_version(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(Repository(root)) as repository:
        for _ in range(2):
            repository.update(LOADER)
    texts = [record.getMessage() for record in caplog.records]
    for name in ("no_version", "zero", "bad name"):
        assert sum(text.startswith(f"model '{name}': ") for text in texts) == 1


def test_unknown_models_and_versions_are_not_found(repository: Repository) -> None:
    with pytest.raises(NotFoundError, match=r"unknown model: 'nope' is not found; the models are"):
        repository.find("nope", "")
    with pytest.raises(NotFoundError, match=r"'good' version 99 is not found; .* ready: 2, 10"):
        repository.find("good", "99")
    with pytest.raises(NotFoundError):
        repository.find("../good", "")
    with pytest.raises(InvalidRequestError, match="Model name cannot be empty"):
        repository.find("", "")


def test_where_no_model_is_loaded_that_is_said(root: Path) -> None:
    repository = Repository(root, only=[])
    repository.update(LOADER)
    with pytest.raises(NotFoundError, match=r"unknown model: 'good' is not found; none is loaded$"):
        repository.find("good", "")


@pytest.mark.parametrize("version", ["x", "0", "-1", "1.0", "01", "9" * 30, "٣"])
def test_versions_are_positive_integers(root: Path, version: str) -> None:
    with pytest.raises(InvalidRequestError, match="version should be an integral value > 0"):
        Repository(root).find("good", version)


def test_loading_stops_when_asked(root: Path) -> None:
    repository = Repository(root)
    repository.update(LOADER, lambda: True)
    assert repository.ready_count == 0
