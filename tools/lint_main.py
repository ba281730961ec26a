"""Runs ruff's linter and formatter check over the repository's Python.

The files are those that Bazel put into the runfiles, so what is checked is what was
declared. To repair what it reports: `ruff check --fix . && ruff format .`
"""

import os
import subprocess
import sys
from pathlib import Path

# This file is RUNFILES/slipway/tools/lint_main.py.
_REPOSITORY = Path(__file__).absolute().parents[1]


def main() -> int:
    # Positions in the report are then relative to the repository.
    os.chdir(_REPOSITORY)
    # ruff skips links when it walks a folder, and runfiles are links: name each file.
    files = sorted(str(path) for path in Path().rglob("*.py") if not path.name.endswith("_pb2.py"))
    if not files:
        print("lint_test: no Python files in the runfiles: see //:python_sources", file=sys.stderr)
        return 1
    ruff = [sys.executable, "-m", "ruff"]
    checks = (["check"], ["format", "--check", "--diff"])
    # Both run, so that one report shows everything.
    status = [subprocess.run([*ruff, *check, "--no-cache", *files]).returncode for check in checks]
    print(f"ruff looked at {len(files)} files")
    return max(status)


if __name__ == "__main__":
    sys.exit(main())
