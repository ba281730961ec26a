"""Damages a program in thousands of ways, and says what became of it.

bazel run //tests/fuzz:report -- [--mutants N] [--seed N]
"""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.campaign import run_campaign


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=20_400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tally = run_campaign(options.mutants, options.seed)
    for text in tally.escaped:
        print(text)
    print(
        f"fuzz: {tally.refused + tally.loaded + len(tally.escaped)} mutants, "
        f"{tally.refused} refused, {tally.loaded} loaded, {len(tally.escaped)} escaped"
    )
    return 1 if tally.escaped else 0


if __name__ == "__main__":
    sys.exit(main())
