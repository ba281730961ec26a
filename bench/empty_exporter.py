"""An exporter that exports nothing: it makes the directory of a program and leaves it empty."""

from __future__ import annotations

import sys
from pathlib import Path


def main(parameters: str) -> None:
    lines = Path(parameters.removeprefix("@")).read_text(encoding="utf-8").splitlines()
    Path(lines[lines.index("--output") + 1]).mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    main(sys.argv[1])
