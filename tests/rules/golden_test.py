"""What the test of a golden file says when it fails, and that its command updates the file."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from runfiles import Runfiles


def run(target: str, **environment: str) -> subprocess.CompletedProcess[str]:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    script = runfiles.Rlocation(f"slipway/tests/rules/{target}")
    assert script is not None
    return subprocess.run(
        [script],
        # As `bazel run` has it.
        cwd=script.removesuffix(f"tests/rules/{target}"),
        env={**os.environ, **runfiles.EnvVars(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_repository_that_differs_says_how_to_update_the_manifest() -> None:
    done = run("outdated_models_test-test.sh")
    assert done.returncode == 1
    assert "< ranker/1  //models:ranker  0000\n" in done.stdout
    assert done.stderr.splitlines()[-2:] == [
        'FAIL: files "tests/rules/outdated.manifest.txt" and '
        '"tests/rules/outdated_models_test.generated" differ. '
        "What //tests/rules:models holds is no longer what outdated.manifest.txt says.",
        "If that is meant: bazel run //tests/rules:outdated_models_test.update",
    ]


def test_what_is_chosen_when_it_is_built_is_called_what_it_is() -> None:
    done = run("chosen_outdated_models_test-test.sh")
    assert done.returncode == 1
    assert "What the repository holds is no longer what the golden file says." in done.stderr
    assert "bazel run //tests/rules:chosen_outdated_models_test.update" in done.stderr


def test_the_command_writes_the_file_and_nothing_else(tmp_path: Path) -> None:
    golden = tmp_path / "tests" / "rules" / "outdated.manifest.txt"
    golden.parent.mkdir(parents=True)
    golden.write_text("old\n")
    done = run("outdated_models_test.update.sh", BUILD_WORKSPACE_DIRECTORY=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "updated tests/rules/outdated.manifest.txt\n")
    lines = golden.read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ranker/1", "//tests/contracts:ranker"],
        ["ranker/2", "//tests/contracts:ranker_wider"],
    ]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [golden]


def test_a_command_can_be_pasted_into_a_shell_whatever_the_target_is_called() -> None:
    command = ["bazel", "run", "//tests/rules:it's outdated, too.update"]
    done = run("it's outdated, too-test.sh")
    assert done.returncode == 1
    advice = done.stderr.splitlines()[-1].removeprefix("If that is meant: ")
    assert shlex.split(advice) == command
    done = run("it's outdated, too.update.sh", BUILD_WORKSPACE_DIRECTORY="")
    assert done.returncode == 2
    assert shlex.split(done.stderr.removeprefix("start this with: ")) == command


def test_the_command_must_be_started_by_bazel() -> None:
    done = run("outdated_models_test.update.sh", BUILD_WORKSPACE_DIRECTORY="")
    assert done.returncode == 2
    assert done.stderr == "start this with: bazel run //tests/rules:outdated_models_test.update\n"
