"""What the tests that the rules make say when they fail, and the command line under Bazel."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from runfiles import Runfiles


def runfiles() -> Runfiles:
    found = Runfiles.Create()
    assert found is not None
    return found


def run(target: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    binary = runfiles().Rlocation(f"slipway/{target}")
    assert binary is not None
    return subprocess.run(
        [binary, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **runfiles().EnvVars(), **environment},
    )


def test_a_program_that_breaks_clients_says_which_and_how_to_go_on() -> None:
    done = run("tests/contracts/narrower_compatibility_test")
    assert done.returncode == 1
    assert (
        "  narrowed      input 'tokens' dimension 0: batch in 1..32 -> batch in 1..16; "
        "was allowed: batch = 17\n"
    ) in done.stdout
    assert done.stdout.endswith("breaks existing clients: 1 clause narrowed\n")
    assert done.stderr.startswith(
        "FAILED: //tests/contracts:ranker_narrower would break clients that were written for "
        "tests/contracts/ranker.contract.json.\n"
    )
    assert re.search(
        r"make the baseline anew:\n  bazel run //program:cli -- baseline \S+/ranker_narrower"
        r"\.program > tests/contracts/ranker\.contract\.json\n$",
        done.stderr,
    )


def test_the_command_can_be_pasted_into_a_shell_whatever_the_target_is_called() -> None:
    done = run("tests/contracts/narrower, too")
    assert done.returncode == 1
    assert done.stderr.startswith("FAILED: //tests/contracts:it's a ranker, narrower would break ")
    *command, program, into, baseline = shlex.split(done.stderr.splitlines()[-1])
    assert command == ["bazel", "run", "//program:cli", "--", "baseline"]
    assert program.endswith("/it's a ranker, narrower.program")
    assert (into, baseline) == (">", "tests/contracts/ranker.contract.json")


def test_a_contract_that_differs_from_the_golden_one_says_how_to_update_it() -> None:
    done = run("tests/contracts/narrower_contract_test-test.sh")
    assert done.returncode == 1
    assert "<     batch  1..32\n---\n>     batch  1..16\n" in done.stdout
    assert done.stderr.splitlines() == [
        'FAIL: files "tests/contracts/ranker.contract.txt" and '
        '"tests/contracts/narrower_contract_test.generated" differ. '
        "What //tests/contracts:ranker_narrower takes or gives is no longer what "
        "ranker.contract.txt says.",
        "If that is meant: bazel run //tests/contracts:narrower_contract_test.update",
    ]


def test_a_damaged_program_fails_its_test() -> None:
    done = run("tests/contracts/damaged_test")
    assert done.returncode == 1
    assert done.stderr.startswith("FAILED: ")
    assert "SHA-256 differs" in done.stderr
    assert runfiles().EnvVars()["RUNFILES_DIR"] not in done.stderr


def test_a_damaged_baseline_is_called_by_its_label_and_the_command_that_makes_it_is_there() -> None:
    done = run("tests/contracts/cut_baseline_test")
    assert done.returncode == 2
    failure, _, command = done.stderr.splitlines()
    assert failure == (
        "FAILED: //tests/contracts:cut.contract.json: it is neither a program's directory nor a "
        "baseline; make a baseline with `python -m slipway.program baseline PROGRAM`"
    )
    assert re.fullmatch(
        r"  bazel run //program:cli -- baseline \S+/ranker\.program > "
        r"tests/contracts/cut\.contract\.json",
        command,
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    program = runfiles().Rlocation("slipway/tests/contracts/ranker.program")
    assert program is not None
    (tmp_path / "ranker.program").symlink_to(Path(program).resolve())
    return tmp_path


def test_paths_are_relative_to_where_bazel_run_was_started(workspace: Path) -> None:
    done = run(
        "program/cli",
        "check",
        "ranker.program",
        "--shape=tokens=3,16",
        "--shape=mask=3,16",
        BUILD_WORKING_DIRECTORY=str(workspace),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "legal: a call of forward"


def test_a_baseline_that_is_made_again_is_the_one_that_is_checked_in(workspace: Path) -> None:
    done = run("program/cli", "baseline", "ranker.program", BUILD_WORKING_DIRECTORY=str(workspace))
    golden = runfiles().Rlocation("slipway/tests/contracts/ranker.contract.json")
    assert golden is not None
    assert done.stdout == Path(golden).read_text(encoding="utf-8")
