"""Servers that carry their programs: what a torch_server target runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from slipway.serving.polling import read_while_polling
from slipway.serving.signals import hold_signals

__all__ = ["run"]


def run(program: str, flags: Sequence[str], config: str = "") -> int:
    """Serves the repository that holds `program`, and returns the process's exit code.

    Args:
      program: the runfiles path of any program of the repository; its MODEL/VERSION is the end.
      flags: come before those of the command line, which win.
      config: the runfiles path of the configuration; empty if there is none.
    """
    root = _runfiles_folder()
    found = []
    for path in filter(None, (program, config)):
        location = Path(root, path)
        if not root or not location.exists():
            print(
                f"slipway: error: {path} is not among the runfiles: start the server with "
                "`bazel run`, or keep NAME.runfiles beside it",
                file=sys.stderr,
            )
            return 2
        found.append(location)
    files = [f"--config={location}" for location in found[1:]]
    hold_signals()
    read_while_polling()
    from slipway.serving.main import main

    return main([*files, f"--bundle={found[0].parents[1]}", *flags, *sys.argv[1:]])


def _runfiles_folder() -> str:
    """Returns the folder of the runfiles, as what Bazel starts a program by names it, or "".

    The folder itself, and not what the manifest in it says: that is where files were on the machine
    that built the server, which has a checked-in file in the source tree and a generated one
    elsewhere, while paths in the configuration count from where it lies.
    """
    manifest = os.environ.get("RUNFILES_MANIFEST_FILE", "")
    for ending in ("/MANIFEST", "_manifest"):
        if manifest.endswith(ending):
            return manifest.removesuffix(ending)
    return os.environ.get("RUNFILES_DIR", "")
