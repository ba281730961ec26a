"""Loads programs in a process that has not seen their models, and runs them.

Usage: run_programs.py DIRECTORY

DIRECTORY has a directory for each program, with the program as `program` and its calls, a list of
(args, kwargs), as `calls.pt`. What came of them is written beside these as `outcomes.pt`: a list of
(result, args, kwargs, state) as they are after each call, or the text of an exception.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from slipway.program import load


def _run(directory: Path) -> Any:
    outcomes = []
    try:
        program = load(directory / "program")
        for args, kwargs in torch.load(directory / "calls.pt"):
            result = program(*args, **kwargs)
            outcome = (result, args, kwargs, dict(program.state))
            # As they are now: the next call may change them.
            outcomes.append(pytree.tree_map_only(torch.Tensor, torch.clone, outcome))
    except Exception:
        return traceback.format_exc()
    return outcomes


def main(root: Path) -> None:
    torch.set_num_threads(1)
    for directory in sorted(root.iterdir()):
        torch.save(_run(directory), directory / "outcomes.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
