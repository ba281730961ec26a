"""Runs mypy over packages of the repository, as strictly as pyproject.toml says.

Usage: typing_main.py PACKAGE...

PACKAGE is a folder of the repository, checked as `slipway.PACKAGE`. Tests are left to
pytest.
"""

import os
import sys
from pathlib import Path

from mypy import api

# This file is RUNFILES/slipway/tools/typing_main.py.
_RUNFILES = Path(__file__).absolute().parents[2]


def main(packages: list[str]) -> int:
    missing = [package for package in packages if not (_RUNFILES / "slipway" / package).is_dir()]
    if missing or not packages:
        print(
            f"typing_test: expected folders of the repository, got {packages}; not in the "
            f"runfiles: {missing}. Add their libraries to deps of //tools:typing_test.",
            file=sys.stderr,
        )
        return 1

    # Module names start at the runfiles root, where `slipway` is. mypy takes sys.path for
    # installed packages, and our own code must not count as such.
    os.chdir(_RUNFILES)
    os.environ["MYPYPATH"] = str(_RUNFILES)
    sys.path[:] = [
        entry
        for entry in sys.path
        if entry != str(_RUNFILES) and not Path(entry).is_relative_to(_RUNFILES / "slipway")
    ]
    report, errors, status = api.run(
        [
            "--config-file=slipway/pyproject.toml",
            f"--cache-dir={os.environ.get('TEST_TMPDIR', os.devnull)}",
            r"--exclude=_test\.py$",
            *(f"slipway/{package}" for package in packages),
        ]
    )
    print(report, errors, sep="")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
