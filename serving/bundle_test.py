"""Where a server that carries its programs finds the files that its configuration names."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from slipway.serving.bundle import run
from slipway.tests.serving.programs import write_affine

PROGRAM = "shop/models/server.repository/affine/1"
CONFIG = "shop/models/server.toml"
TOKENS = "shop/models/secrets/operators.tokens"


@pytest.fixture
def runfiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runfiles that `bazel run` makes, with a manifest beside it that is looked at.

    The configuration is checked in, and what it names is made by the build.
    """
    manifest = tmp_path / "server.runfiles_manifest"
    root = tmp_path / "server.runfiles"
    write_affine(tmp_path / "output" / PROGRAM)
    contents = {
        tmp_path / "source" / CONFIG: '[security]\ncontrol_tokens = "secrets/operators.tokens"\n',
        tmp_path / "output" / TOKENS: "a-token-of-operators\n",
    }
    for file, text in contents.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    # Not readable, as what the user who built the server keeps from all others.
    private = tmp_path / "output" / "_repo_mapping"
    private.mkdir()
    lines = [f"_repo_mapping {private}\n"]
    for folder, path in (("output", PROGRAM), ("source", CONFIG), ("output", TOKENS)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(tmp_path / folder / path)
        lines.append(f"{path} {tmp_path / folder / path}\n")
    manifest.write_text("".join(lines))
    monkeypatch.setenv("RUNFILES_MANIFEST_FILE", str(manifest))
    monkeypatch.setattr(sys, "argv", ["server", "--check"])
    return root


def test_the_files_that_it_names_lie_beside_it_among_the_runfiles(
    runfiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(PROGRAM, [], CONFIG) == 0, capsys.readouterr().err
    configuration = tomllib.loads(capsys.readouterr().out)
    assert configuration["security"]["control_tokens"] == str(runfiles / TOKENS)
    assert configuration["repository"]["path"] == str(runfiles / "shop/models/server.repository")
    assert configuration["repository"]["compiled"] == "auto"


def test_a_file_that_is_no_runfile_is_not_there(
    runfiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runfiles / TOKENS).unlink()
    assert run(PROGRAM, [], CONFIG) == 2
    assert f"{runfiles / CONFIG}:2: cannot read {runfiles / TOKENS}" in capsys.readouterr().err


def test_runfiles_that_are_missing_are_named(
    runfiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runfiles / CONFIG).unlink()
    assert run(PROGRAM, [], CONFIG) == 2
    assert f"error: {CONFIG} is not among the runfiles: start" in capsys.readouterr().err
