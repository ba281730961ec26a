"""What torch does about each of the fourteen holes, and what we do.

bazel run //tests/soundness:report
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

from slipway.tests.soundness.holes import HOLES, NotShownError


def _seen(side: Callable[[], str]) -> tuple[bool, str]:
    try:
        return True, side()
    except NotShownError as error:
        return True, f"(not shown: {error})"
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    closed = 0
    for hole in HOLES:
        open_in_torch, evidence = _seen(hole.torch)
        closed_here, answer = _seen(hole.slipway)
        closed += closed_here
        print(f"{hole.number:2}. {hole.title}")
        print(f"    torch:   {evidence if open_in_torch else 'CLOSED? ' + evidence}")
        print(f"    slipway: {answer if closed_here else 'OPEN: ' + answer}", flush=True)
    print(f"\nsoundness: {closed} of {len(HOLES)} holes closed")
    return 0 if closed == len(HOLES) else 1


if __name__ == "__main__":
    sys.exit(main())
