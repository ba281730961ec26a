"""A Bazel of its own, offline, on the workspace beside this file, which depends on Slipway."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path
from types import TracebackType

from runfiles import Runfiles

__all__ = ["TESTS", "NestedBazel", "repository"]

# Of the workspace.
TESTS = [
    "//models:ranker_compatibility_test",
    "//models:ranker_test",
    "//models:server_test",
]

# This file is RUNFILES/slipway/tests/external_workspace/nested_bazel.py.
_SLIPWAY = Path(__file__).absolute().parents[2]
_WORKSPACE = Path(__file__).absolute().with_name("warehouse")


class NestedBazel:
    """A context whose end shuts Bazel's server down.

    Args:
      scratch: a folder for everything that it builds. Not under /tmp, which actions do not see.
      main: the name that Bazel gives to the workspace among runfiles.
      python_site: the name that Bazel gives to the repository of Slipway's packages.
      *flags: for every command.
    """

    def __init__(self, scratch: Path, main: str, python_site: str, *flags: str) -> None:
        self._main = main
        self._output_base = scratch / "output_base"
        self._flags = [
            "--color=no",
            "--curses=no",
            "--noshow_progress",
            f"--override_repository={python_site}={_python_site(scratch)}",
            *flags,
        ]

    def run(self, command: str, *arguments: str) -> str:
        """Returns what a command prints to standard output; fails with all that it prints."""
        result = self._start(command, *self._flags, *arguments)
        assert result.returncode == 0, (
            f"bazel {command} {' '.join(arguments)} ended with status {result.returncode}:\n"
            f"{result.stdout}{result.stderr}"
        )
        return result.stdout

    def test_everything(self) -> None:
        """Builds all, and fails unless each of `TESTS` is run and passes."""
        assert sorted(self.run("query", "tests(//...)").split()) == TESTS
        # The machine may be busy with other tests beside this one.
        summary = self.run("test", "--test_output=errors", "--test_timeout=900", "//...")
        lines = [line for line in summary.splitlines() if " PASSED in " in line]
        assert sorted(line.split()[0] for line in lines) == TESTS

    def check_configurations(self) -> None:
        """Fails unless servers find what their configurations name, checked in or made."""
        for server, tokens in (
            ("server", "operators.tokens"),
            ("server_of_made_configuration", "checked_in.tokens"),
        ):
            printed = self.run("run", f"//models:{server}", "--", "--check")
            named = tomllib.loads(printed)["security"]["control_tokens"]
            assert named.endswith(f"/models/{server}.runfiles/{self._main}/models/{tokens}")

    def check_baseline_command(self, label: str) -> None:
        """Fails unless the command that a failing test prints is for `label` and makes a baseline.

        Args:
          label: of the command line's binary, as the workspace has to call it.
        """
        bin_folder = Path(self.run("info", "bazel-bin").strip())
        main = (bin_folder / "models/ranker_compatibility_test_main.py").read_text()
        into = re.escape(" > models/ranker.contract.json")
        command = re.search(rf"bazel run (\S+) -- baseline (\S+){into}", main)
        assert command is not None, main
        assert command[1] == label
        program = Path(self.run("info", "execution_root").strip(), command[2])
        assert json.loads(self.run("run", label, "--", "baseline", str(program)))

    def __enter__(self) -> NestedBazel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pid = self._output_base / "server/server.pid.txt"
        server = int(pid.read_text(encoding="utf-8")) if pid.exists() else 0
        if self._start("shutdown").returncode and server:
            os.kill(server, signal.SIGKILL)

    def _start(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                _SLIPWAY / "bazelw",
                "--nohome_rc",
                f"--output_base={self._output_base}",
                "--max_idle_secs=60",
                command,
                *arguments,
            ],
            cwd=_WORKSPACE,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )


def repository(path: str, levels: int) -> Path:
    """Returns the folder of an external repository of the outer Bazel.

    Args:
      path: the runfiles path of a file in it.
      levels: how many folders of the repository are in that path.
    """
    runfiles = Runfiles.Create()
    assert runfiles is not None
    location = runfiles.Rlocation(path)
    assert location is not None
    return Path(location).resolve().parents[levels]


def _python_site(scratch: Path) -> Path:
    """Makes a repository of the outer Bazel's finished site, and returns its folder."""
    finished = repository("python_site/site-packages", 0)
    made = scratch / "python_site"
    made.mkdir()
    (made / "WORKSPACE").touch()
    shutil.copy(finished / "BUILD.bazel", made / "BUILD.bazel")
    (made / "site-packages").symlink_to(finished / "site-packages")
    return made


def _environment() -> dict[str, str]:
    kept = ("HOME", "PATH", "SLIPWAY_BAZEL_CACHE", "SLIPWAY_PYTHON", "USER", "XDG_CACHE_HOME")
    return {name: os.environ[name] for name in kept if name in os.environ}
