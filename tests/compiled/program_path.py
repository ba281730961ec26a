"""Where the compiled program of these tests is."""

from pathlib import Path

import torch
from runfiles import Runfiles

__all__ = ["TARGET", "program_path"]

TARGET = "cpu-avx2-torch" + torch.__version__.partition("+")[0]
"""What it is compiled for."""


def program_path() -> Path:
    """Returns the program's directory."""
    runfiles = Runfiles.Create()
    assert runfiles is not None
    path = runfiles.Rlocation("slipway/tests/compiled/ranker.program")
    assert path is not None
    return Path(path)
