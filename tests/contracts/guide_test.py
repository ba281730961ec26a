"""What docs/contracts.md shows is run as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from runfiles import Runfiles

# This file is RUNFILES/slipway/tests/contracts/guide_test.py.
REPOSITORY = Path(__file__).absolute().parents[2]
GUIDE = (REPOSITORY / "docs/contracts.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"^```console\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
BAZEL = re.findall(r"^\./bazelw run //program:cli -- (.*)$", GUIDE, re.MULTILINE)


def cli(command: str, workspace: Path) -> str:
    """Returns what a command of the command line prints, and writes it where it says."""
    runfiles = Runfiles.Create()
    assert runfiles is not None
    binary = runfiles.Rlocation("slipway/program/cli")
    assert binary is not None
    arguments, _, file = command.partition(" > ")
    done = subprocess.run(
        [binary, *shlex.split(arguments)],
        env={**os.environ, **runfiles.EnvVars(), "BUILD_WORKING_DIRECTORY": str(workspace)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == ("refused" in done.stdout)
    if file:
        (workspace / file).write_text(done.stdout, encoding="utf-8")
        return ""
    return done.stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    program = (REPOSITORY / "examples/encoder/encoder.program").resolve()
    (folder / "encoder.program").symlink_to(program)
    (folder / "bazel-bin/examples/encoder").mkdir(parents=True)
    (folder / "bazel-bin/examples/encoder/encoder.program").symlink_to(program)
    return folder


def test_the_guide_has_commands() -> None:
    assert (len(CONSOLE), len(BAZEL)) == (5, 2)


@pytest.mark.parametrize("block", CONSOLE)
def test_commands_print_what_is_shown(block: str, workspace: Path) -> None:
    printed = ""
    for line in block.splitlines():
        if line.startswith("$ python -m slipway.program "):
            printed = cli(line.removeprefix("$ python -m slipway.program "), workspace)
    shown = re.sub(r"^\$ .*\n", "", block, flags=re.MULTILINE)
    if shown.endswith("…\n"):
        assert printed.startswith(shown.removesuffix("…\n"))
    else:
        assert printed == shown


@pytest.mark.parametrize("command", BAZEL)
def test_commands_of_bazel_run(command: str, workspace: Path) -> None:
    printed = cli(command, workspace)
    assert printed.startswith("method forward\n") or " > " in command


def test_the_command_line_is_a_module_too(workspace: Path) -> None:
    command = [sys.executable, "-m", "slipway.program", "describe", "encoder.program"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.check_output(command, cwd=workspace, env=environment, text=True)
    assert printed == cli("describe encoder.program", workspace)
