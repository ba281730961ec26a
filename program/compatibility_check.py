"""Whether a program still serves the clients of a baseline: what a compatibility test runs."""

from __future__ import annotations

import sys
from pathlib import Path

from runfiles import Runfiles

from slipway.program.compatibility import compare
from slipway.program.contract_files import read_contract_file
from slipway.program.diff_report import as_text
from slipway.program.errors import ProgramError

__all__ = ["run"]


def run(
    baseline: str, baseline_label: str, program: str, label: str, update: str, python: str
) -> int:
    """Compares two files among the runfiles, says what has changed, and returns the exit code.

    Args:
      baseline: the runfiles path of a program's directory or a baseline file.
      baseline_label: what to call it.
      program: the runfiles path of a program's directory.
      label: what to call the program.
      update: the command that makes the baseline anew; empty where there is none.
      python: not empty if some clients call the program as a Python object.
    """
    runfiles = Runfiles.Create()
    contracts = []
    for path, name in ((baseline, baseline_label), (program, label)):
        location = runfiles.Rlocation(path) if runfiles is not None else None
        if location is None or not Path(location).exists():
            print(f"{path} is not among the runfiles: run this with `bazel test`", file=sys.stderr)
            return 2
        try:
            contracts.append(read_contract_file(Path(location)).contracts)
        except ProgramError as error:
            # Where the runfiles are is nothing that could be looked at when the test is over.
            print(f"FAILED: {str(error).replace(location, name)}", file=sys.stderr)
            if update and path == baseline:
                print(f"In this workspace:\n  {update}", file=sys.stderr)
            return 2
    differences = compare(*contracts)
    print(as_text(differences, python=bool(python)), end="")
    if not any(differences.breaking(python=bool(python))):
        return 0
    advice = [
        f"FAILED: {label} would break clients that were written for {baseline.partition('/')[2]}.",
        "Widen what is narrowed, or offer the change as another method or another model.",
    ]
    if update:
        advice.append(f"If there are no such clients any more, make the baseline anew:\n  {update}")
    print("\n".join(advice), file=sys.stderr)
    return 1
