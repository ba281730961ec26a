"""Runs pytest under `bazel test`: the main program of every pytest_test target.

Usage: pytest_main.py FILE... -- [PYTEST_ARGUMENT...]

FILE is a runfiles path (`slipway/program/contract_test.py`). The exit code is pytest's own,
which is not zero when no test ran.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from pathlib import Path

import pytest

# This file is RUNFILES/slipway/tools/pytest_main.py.
_RUNFILES = Path(__file__).absolute().parents[2]


class _Shard:
    """Keeps every n-th test, as Bazel's `shard_count` asks."""

    def __init__(self, index: int, total: int) -> None:
        self._index = index
        self._total = total
        self._collected = 0

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        self._collected = len(items)
        kept = items[self._index :: self._total]
        dropped = [item for i, item in enumerate(items) if i % self._total != self._index]
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        # More shards than tests is no mistake of the tests, as long as there are some.
        if self._collected and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK


def _prepare_environment() -> None:
    scratch = os.environ.get("TEST_TMPDIR")
    if scratch:
        # Bazel passes no HOME; caches of torch and others would land in the root folder.
        os.environ.setdefault("HOME", scratch)
        os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(scratch, "hypothesis"))
    # Selects Hypothesis' profile "ci": derandomized, no deadline, no database.
    os.environ.setdefault("CI", "1")


def _pytest_arguments(files: list[str], further: list[str]) -> list[str]:
    arguments = [
        f"--rootdir={_RUNFILES / 'slipway'}",
        # Test modules of one name in several packages do not collide.
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
    ]
    if report := os.environ.get("XML_OUTPUT_FILE"):
        arguments.append(f"--junitxml={report}")
    if selection := os.environ.get("TESTBRIDGE_TEST_ONLY"):
        arguments += ["-k", selection]
    if os.environ.get("TESTBRIDGE_TEST_RUNNER_FAIL_FAST") == "1":
        arguments.append("--exitfirst")
    return arguments + further + [str(_RUNFILES / file) for file in files]


def main(arguments: list[str]) -> int:
    if "--" not in arguments:
        print(
            "pytest_main: expected FILE... -- [PYTEST_ARGUMENT...]. "
            "Start the target with `bazel test` or `bazel run`, which pass its files.",
            file=sys.stderr,
        )
        return pytest.ExitCode.USAGE_ERROR
    separator = arguments.index("--")
    files, further = arguments[:separator], arguments[separator + 1 :]

    _prepare_environment()
    # Bazel ends a test that ran out of time with SIGTERM: say where it was.
    faulthandler.register(signal.SIGTERM, chain=True)

    plugins: list[object] = []
    if status_file := os.environ.get("TEST_SHARD_STATUS_FILE"):
        Path(status_file).touch()
    total = int(os.environ.get("TEST_TOTAL_SHARDS") or 1)
    if total > 1:
        plugins.append(_Shard(int(os.environ["TEST_SHARD_INDEX"]), total))
    return pytest.main(_pytest_arguments(files, further), plugins)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
