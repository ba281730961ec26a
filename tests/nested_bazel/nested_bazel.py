"""Real Bazel on copies of the workspace, for reports that need builds of their own.

    with scratch_folder() as scratch:
        checkout = copy_checkout(scratch / "checkout")
        with Bazel(checkout, scratch / "output_base") as bazel:
            bazel.run("build", "//examples/mlp")

An output base of its own would download and merge torch anew. Here it takes the repositories of
locked Python packages, finished, from the Bazel that started the program: hard links beside the
output base, which stay as they are whatever that Bazel does next. All else is made afresh.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from runfiles import Runfiles

__all__ = ["Bazel", "BazelError", "copy_checkout", "scratch_folder"]

# A folder of `external/` that a workspace would otherwise spend minutes on.
_PYTHON_REPOSITORIES = (
    "pip",
    "pip_model",
    "pip_test",
    "python_bench_site",
    "python_model_site",
    "python_site",
    "python_test_site",
)

_BUILDING = ("aquery", "build", "cquery", "run", "test")

# What `bazel run` and the start of a Python binary leave in the environment.
_OUR_OWN = ("BUILD_", "JAVA_RUNFILES", "PYTHON", "RUNFILES_", "TEST_")


class BazelError(Exception):
    """A command of a nested Bazel failed: which one, where, and what it printed."""


class Bazel:
    """Bazel on one checkout, with a server and an output base of its own.

    A context: its end shuts the server down.

    Args:
      checkout: the workspace.
      output_base: where everything that is built lies, in a scratch folder.
      environment: variables for Bazel's client and server, over those of this process.
    """

    def __init__(
        self, checkout: Path, output_base: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.checkout = checkout
        self.output_base = output_base
        self._environment = _clean_environment(checkout) | dict(environment or {})
        self._overrides = [
            f"--override_repository={name}={path}"
            for name, path in _linked_python_repositories(output_base.parent).items()
        ]

    def __enter__(self) -> Bazel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._start("shutdown")

    def run(self, command: str, *arguments: str) -> str:
        """Returns what a command prints to standard output.

        Args:
          command: such as `build`.
          *arguments: its flags and targets.

        Raises:
          BazelError: it fails.
        """
        return self.run_with_log(command, *arguments)[0]

    def run_with_log(self, command: str, *arguments: str) -> tuple[str, str]:
        """As `run`, but returns what it prints to standard error too."""
        flags = [
            *self._overrides,
            # A person's own caches would answer in place of the build.
            *(["--disk_cache=", "--remote_cache="] if command in _BUILDING else []),
            "--color=no",
            "--curses=no",
            "--noshow_progress",
        ]
        result = self._start(command, *flags, *arguments)
        if result.returncode:
            raise BazelError(
                f"bazel {command} {' '.join(arguments)} in {self.checkout} ended with status "
                f"{result.returncode}:\n{result.stderr}"
            )
        return result.stdout, result.stderr

    def outputs(self, targets: Sequence[str], *flags: str) -> dict[str, Path]:
        """Returns the files of built targets, by their path in the output tree.

        Args:
          targets: labels. A directory counts as the files in it.
          *flags: those of the build.
        """
        root = Path(self.run("info", "execution_root").strip())
        listed = self.run("cquery", *flags, "--output=files", f"set({' '.join(targets)})")
        return {
            str(file.relative_to(root)): file
            for line in sorted(set(listed.splitlines()))
            for file in _files(root / line)
        }

    def _start(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        startup = [f"--output_base={self.output_base}", "--max_idle_secs=600"]
        return subprocess.run(
            [str(self.checkout / "bazelw"), *startup, command, *arguments],
            cwd=self.checkout,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )


def copy_checkout(destination: Path) -> Path:
    """Copies the files of the checkout that `bazel run` was called in; returns the destination.

    With git, what git tracks or would track; without, everything but Bazel's own links.
    """
    source = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    for name in _checkout_files(source):
        # A tracked file may be deleted and not yet committed.
        if os.path.lexists(source / name):
            target = destination / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target, follow_symlinks=False)
    return destination


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields a folder beside the output bases of this machine's Bazel, and removes it.

    It is not under /tmp, which the sandbox of an action hides.
    """
    output_base = _finished_python_repositories()["python_site"].parents[1]
    folder = Path(tempfile.mkdtemp(prefix="slipway_nested_", dir=output_base.parent))
    # By default Python would end at once, and leave servers and the folder.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield folder
    finally:
        _remove(folder)


def _checkout_files(source: Path) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        return [name for name in listed.stdout.split("\0") if name]
    print(f"not a git checkout, copying all of {source}", file=sys.stderr)
    return [
        str(path.relative_to(source))
        for path in source.rglob("*")
        if (path.is_file() or path.is_symlink())
        and not path.relative_to(source).parts[0].startswith("bazel-")
    ]


def _clean_environment(checkout: Path) -> dict[str, str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(_OUR_OWN)
    }
    # Where bazelw would look; said explicitly so that another HOME finds the same Bazel.
    caches = environment.get("XDG_CACHE_HOME") or f"{environment.get('HOME', '')}/.cache"
    version = (checkout / ".bazelversion").read_text(encoding="utf-8").strip()
    environment.setdefault("SLIPWAY_BAZEL_CACHE", f"{caches}/slipway/bazel-{version}")
    return environment


def _finished_python_repositories() -> dict[str, Path]:
    runfiles = Runfiles.Create()
    site = runfiles and runfiles.Rlocation("python_site/site-packages")
    if not site or not Path(site).is_dir():
        raise BazelError(
            "the runfiles have no python_site/site-packages: start this with `bazel run`, and "
            "keep //third_party:python_site in the target's deps"
        )
    external = Path(site).resolve().parents[1]
    return {name: external / name for name in _PYTHON_REPOSITORIES if (external / name).is_dir()}


def _linked_python_repositories(folder: Path) -> dict[str, Path]:
    linked = {}
    for name, finished in _finished_python_repositories().items():
        linked[name] = folder / "python_repositories" / name
        shutil.copytree(finished, linked[name], symlinks=True, copy_function=os.link)
    return linked


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(
        Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names
    )


def _remove(folder: Path) -> None:
    """Removes a folder, read-only parts included; what it links to stays."""
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(parent, name)
            if not path.is_symlink():
                path.chmod(0o755)
    shutil.rmtree(folder)
