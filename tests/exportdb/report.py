"""What comes of every case of ExportDB, as a table.

bazel run //tests/exportdb:report
"""

from __future__ import annotations

import sys
import warnings

from slipway.tests.exportdb import cases
from slipway.tests.exportdb.cases import VARIANTS, Status

_WIDTH = 20


def main() -> int:
    with warnings.catch_warnings():
        # Torch remarks on what the cases do on purpose.
        warnings.simplefilter("ignore")
        outcomes = cases.outcomes()
    width = max(map(len, cases.names()))
    print(" " * width, *(str(variant).rjust(_WIDTH) for variant in VARIANTS))
    for name in cases.names():
        statuses = [outcomes[name, variant].status for variant in VARIANTS]
        note = "" if cases.is_supported(name) else "  (torch does not support it yet)"
        print(name.ljust(width), *(item.value.rjust(_WIDTH) for item in statuses), note)
    for (name, variant), outcome in outcomes.items():
        if outcome.status is not Status.EQUAL:
            print(f"\n{name}, {variant}: {outcome.status.value}\n{outcome.reason}")
    count = dict.fromkeys(Status, 0)
    for name in cases.names():
        count[_worst({outcomes[name, variant].status for variant in VARIANTS})] += 1
    print(
        f"\nexportdb: {len(cases.names())} cases, {count[Status.EQUAL]} exported and equal, "
        f"{count[Status.REFUSED]} refused with a rewrite, {count[Status.WRONG]} wrong, "
        f"{count[Status.UNCAUGHT]} uncaught"
    )
    return 1 if count[Status.WRONG] or count[Status.UNCAUGHT] else 0


def _worst(statuses: set[Status]) -> Status:
    return max(statuses, key=list(Status).index)


if __name__ == "__main__":
    sys.exit(main())
