"""Decides on random calls of many models, and says where a contract was wrong.

bazel run //tests/soundness:contracts
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
import warnings

from slipway.tests.soundness.differential import Tally, examine
from slipway.tests.soundness.subjects import SUBJECTS


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    total = Tally()
    failed = 0
    for subject in SUBJECTS:
        started = time.monotonic()
        try:
            tally = examine(subject)
        except Exception:
            failed += 1
            print(f"{subject.name}: FAILED\n{traceback.format_exc()}", flush=True)
            continue
        print(
            f"{subject.name:<40} {tally.decisions:5} decisions, {tally.accepted:4} accepted "
            f"({tally.retraced} where torch's guards do not), {len(tally.unsound)} unsound, "
            f"{len(tally.over_strict)} over-strict, {len(tally.tied)} tied, "
            f"{len(tally.coincidences)} coincidences  {time.monotonic() - started:.1f} s",
            flush=True,
        )
        for kind in ("unsound", "over_strict", "tied", "coincidences"):
            for line in getattr(tally, kind)[:2]:
                print(f"    {kind}: {line}")
        total.add(tally)
    print(
        f"\n{len(total.tied)} refused since one symbol would have several sizes, and "
        f"{len(total.coincidences)} since tracing there gives another graph or other shapes, agree "
        "with the model all the same."
    )
    print(
        f"contracts: {total.decisions} decisions, {len(total.unsound)} unsound, "
        f"{len(total.over_strict)} over-strict"
    )
    excess = len(total.over_strict) * 100 > total.decisions
    return 1 if failed or total.unsound or excess else 0


if __name__ == "__main__":
    sys.exit(main())
