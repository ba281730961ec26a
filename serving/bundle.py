"""Servers that carry their programs: what a torch_server target runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from runfiles import Runfiles

from slipway.serving.main import main

__all__ = ["run"]


def run(program: str, flags: Sequence[str]) -> int:
    """Serves the repository that holds `program`, and returns the process's exit code.

    Args:
      program: the runfiles path of any program of the repository; its MODEL/VERSION is the end.
      flags: come before those of the command line, which win.
    """
    runfiles = Runfiles.Create()
    location = runfiles.Rlocation(program) if runfiles is not None else None
    if location is None or not Path(location).is_dir():
        print(
            f"slipway: error: {program} is not among the runfiles: start the server with "
            "`bazel run`, or keep NAME.runfiles beside it",
            file=sys.stderr,
        )
        return 2
    return main([f"--repository={Path(location).parents[1]}", *flags, *sys.argv[1:]])
