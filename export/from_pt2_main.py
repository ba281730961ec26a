"""Makes a program of an archive that torch.export.save wrote.

Only for archives that you trust: torch's own loader reads them, which unpickles.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from slipway.export.errors import ExportError
from slipway.export.from_torch import from_pt2
from slipway.program.custom_ops import CustomOpsError, load_custom_ops
from slipway.program.errors import ProgramError
from slipway.program.integers import multiply_integers_exactly

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes a program as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="from_pt2", description=__doc__, fromfile_prefix_chars="@"
    )
    parser.add_argument("archive", metavar="IN.pt2", type=Path, help="what torch.export.save wrote")
    parser.add_argument(
        "program", metavar="OUT.program", type=Path, help="the program's directory, new or empty"
    )
    parser.add_argument(
        "--symbol-name",
        action="append",
        default=[],
        type=_renaming,
        metavar="X_0=BATCH",
        help="a better name for a symbol; repeatable",
    )
    parser.add_argument(
        "--custom-ops",
        action="append",
        default=[],
        metavar="MODULE",
        help="a Python module that registers operators which the archive calls; repeatable",
    )
    parser.add_argument(
        "--import-root", action="append", default=[], metavar="DIR", help="for such modules"
    )
    parser.add_argument("--label", default="", help="what messages call the archive")
    options = parser.parse_args(arguments)
    sys.path += [str(Path(root).absolute()) for root in options.import_root]
    torch.set_num_threads(1)
    multiply_integers_exactly()
    archive = _absolute(options.archive)
    try:
        custom_ops = load_custom_ops(options.custom_ops)
        program = from_pt2(
            archive, symbol_names=dict(options.symbol_name), custom_ops=sorted(custom_ops)
        )
        program.save(_absolute(options.program))
    except (ExportError, CustomOpsError, ProgramError) as error:
        label = options.label or options.archive
        print(f"{label}: no program can be made of it: {error}", file=sys.stderr)
        return 1
    return 0


def _renaming(text: str) -> tuple[str, str]:
    old, separator, new = text.partition("=")
    if not (old and separator and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form OLD=NEW")
    return old, new


def _absolute(path: Path) -> Path:
    # `bazel run` changes the directory and says here where the user was.
    return Path(os.environ.get("BUILD_WORKING_DIRECTORY", "")).joinpath(path).absolute()


if __name__ == "__main__":
    sys.exit(main())
