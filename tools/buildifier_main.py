"""Checks the format of BUILD and .bzl files with buildifier, where there is one.

buildifier is no Python package, so the lock cannot bring it: the check looks for it on
the caller's PATH and passes, saying so, where it is missing. It comes with Homebrew, as a
release of bazelbuild/buildtools, or with `npm install --global @bazel/buildifier`.
To repair what it reports: `buildifier -r .`
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# This file is RUNFILES/slipway/tools/buildifier_main.py.
_REPOSITORY = Path(__file__).absolute().parents[1]


def main() -> int:
    buildifier = shutil.which("buildifier")
    if not buildifier:
        print("SKIPPED: no buildifier on the PATH, so no BUILD file was checked")
        return 0
    os.chdir(_REPOSITORY)
    files = sorted(
        str(path)
        for path in Path().rglob("*")
        if path.name in ("BUILD", "MODULE.bazel", "WORKSPACE") or path.suffix == ".bzl"
    )
    # Runfiles are links, which buildifier reads as the files they lead to.
    status = subprocess.run([buildifier, "-mode=diff", "-lint=off", *files]).returncode
    print(f"buildifier looked at {len(files)} files")
    return status


if __name__ == "__main__":
    sys.exit(main())
