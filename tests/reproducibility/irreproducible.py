"""Writes a file that no two builds make alike: the controls of the reproducibility report.

Usage: irreproducible.py hash_order|path|time|torch_export_save OUTPUT
"""

from __future__ import annotations

import os
import sys
import time


def main(kind: str, output: str) -> None:
    if kind == "hash_order":
        # The order of a set of strings follows the seed that each Python process draws.
        text = "\n".join({str(number) for number in range(100)})
    elif kind == "path":
        text = os.getcwd()
    elif kind == "time":
        text = str(time.time_ns())
    elif kind == "torch_export_save":
        import torch

        program = torch.export.export(torch.nn.Linear(3, 2), (torch.ones(1, 3),))
        torch.export.save(program, output)
        return
    else:
        raise SystemExit(f"expected hash_order, path, time or torch_export_save, got {kind!r}")
    with open(output, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
