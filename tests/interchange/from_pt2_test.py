"""The rule torch_program_from_pt2 and the command //export:from_pt2."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from runfiles import Runfiles

from slipway.program import ContractViolation, Program, load
from slipway.tests.custom_ops import doubling as doubling  # registers the operator

ROOT = Path(__file__).absolute().parents[2]
HERE = Path(__file__).absolute().parent


def load_ranker(directory: Path) -> Program:
    return load(directory, custom_ops=["doubling"])


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    command = runfiles.Rlocation("slipway/export/from_pt2")
    assert command is not None
    return subprocess.run(
        [command, *arguments],
        env=runfiles.EnvVars() | {"BUILD_WORKING_DIRECTORY": str(folder)},
        capture_output=True,
        text=True,
    )


def test_a_target_makes_a_program_of_an_archive() -> None:
    program = load_ranker(HERE / "ranker.program")
    features = torch.ones(5, 4)
    expected = torch.export.load(HERE / "ranker.pt2").module()(features)
    torch.testing.assert_close(program(features), expected)
    (batch,) = program.contract.symbols
    assert (batch.name, batch.minimum, batch.maximum) == ("batch", 2, 64)
    with pytest.raises(ContractViolation, match=r"allowed: 2\.\.64"):
        program(torch.ones(65, 4))


def test_the_command_makes_the_same_program(tmp_path: Path) -> None:
    (tmp_path / "in.pt2").symlink_to(HERE / "ranker.pt2")
    made = run(
        "in.pt2",
        "out.program",
        "--symbol-name=features_0=batch",
        "--custom-ops=tests.custom_ops.doubling",
        f"--import-root={ROOT}",
        folder=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    target = load_ranker(HERE / "ranker.program")
    assert load_ranker(tmp_path / "out.program").contract == target.contract


def test_what_cannot_be_made_a_program_is_said_in_a_few_lines(tmp_path: Path) -> None:
    (tmp_path / "in.pt2").write_bytes(b"no archive")
    failed = run("in.pt2", "out.program", folder=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("in.pt2: no program can be made of it: invalid spec: ")
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "out.program").exists()
