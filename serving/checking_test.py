"""What `--check` finds in a repository: what loading would find there."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from slipway.serving.checking import check
from slipway.serving.command_line import parse
from slipway.serving.configuration_file import ConfigurationError
from slipway.serving.host import Host
from slipway.serving.loader import Loader
from slipway.serving.model import Environment
from slipway.serving.processors import Processors
from slipway.serving.repository import Repository
from slipway.tests.serving.programs import write_affine


def problems(root: Path, *flags: str) -> list[str]:
    try:
        check(parse([f"--repository={root}", *flags]))
    except ConfigurationError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    ("models", "refused", "name"),
    [
        ({"a": ["forward", "b"], "a.b": ["forward"]}, "a", "a.b"),
        ({"a": ["forward", "b.c"], "a.b": ["forward", "c"]}, "a.b", "a.b.c"),
        ({"a": ["b", "c"], "a.c": ["d"]}, "a", "a.c"),
        ({"a": ["b"], "a.b": ["forward"]}, "", ""),
        ({"a": ["forward", "b"], "b": ["forward"]}, "", ""),
    ],
)
def test_names_that_mean_two_models_are_found_as_loading_finds_them(
    tmp_path: Path, models: dict[str, list[str]], refused: str, name: str
) -> None:
    for model, methods in models.items():
        write_affine(tmp_path / model / "1", methods=methods)
    with contextlib.closing(Repository(tmp_path)) as loaded:
        loaded.update(Loader(Host(Processors(1)), Environment()))
        reasons = {each.name: each.reason for each in loaded.index() if each.reason}
    assert sorted(reasons) == ([refused] if refused else [])
    found = problems(tmp_path)
    assert found == [
        f"--repository: model '{model}' version 1: {text}" for model, text in reasons.items()
    ]
    assert all(f"would be served as '{name}'" in text for text in found)


def test_what_is_not_served_clashes_with_nothing(tmp_path: Path) -> None:
    write_affine(tmp_path / "a" / "1")
    write_affine(tmp_path / "a" / "2", methods=["forward", "b"])
    write_affine(tmp_path / "a.b" / "1")
    assert len(problems(tmp_path)) == 1
    assert not problems(tmp_path, "--version-policy=1")
    assert not problems(tmp_path, "--model-control=explicit", "--load-model=a")


def test_it_warns_of_models_to_load_where_all_are_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_affine(tmp_path / "a" / "1")
    assert not problems(tmp_path, "--load-model=a")
    text = 'warning: load_model does nothing with model_control = "fixed"'
    assert text in capsys.readouterr().err
    assert not problems(tmp_path, "--load-model=a", "--model-control=explicit")
    assert "load_model" not in capsys.readouterr().err


def test_it_warns_of_models_that_are_not_there_unless_they_must_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_affine(tmp_path / "a" / "1")
    assert not problems(tmp_path, "--load-model=b")
    text = "load_model names 'b', which the repository does not have"
    assert text in capsys.readouterr().err
    (problem,) = problems(tmp_path, "--load-model=b", "--model-control=explicit")
    assert "has no model b to load" in problem


def test_it_warns_of_labels_of_versions_that_are_there_and_not_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, path = tmp_path / "repository", tmp_path / "server.toml"
    for version in ("1", "2"):
        write_affine(root / "a" / version)
    path.write_text("[models.a]\nlabels = { stable = 1, canary = 2 }\n")
    assert not problems(root, f"--config={path}", "--version-policy=latest:1")
    text = "the label 'stable' of model 'a' is version 1, which is not served; the versions that"
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "label" in line]
    assert text in warning
