"""Copies a program, and flips a bit of its weights.

Usage: damage_program.py PROGRAM OUTPUT
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def main(program: str, output: str) -> None:
    shutil.copytree(program, output, dirs_exist_ok=True, copy_function=shutil.copyfile)
    weights = min(Path(output, "weights").iterdir())
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
