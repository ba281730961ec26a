"""Changes a repository again and again under steady load, and counts the requests that fail.

bazel run //tests/operations:reload_under_load -- --seconds 60
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from slipway.tests.operations.load import Load
from slipway.tests.operations.repository_changes import Control, changes, make_repository
from slipway.tests.serving.server_process import ServerProcess

__all__ = ["Outcome", "reload_under_load"]

_LEAST_CHANGES = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the requests.

    Attributes:
      requests: how many there were.
      failed: how many got an error, a wrong answer, or none.
      changes: how many changes were made and followed.
      summary: the counts, and what went wrong.
    """

    requests: int
    failed: int
    changes: int
    summary: str


def reload_under_load(mode: str, seconds: float, least_changes: int = _LEAST_CHANGES) -> Outcome:
    """Makes changes for so long, but at least so many, and returns what became of the requests.

    Args:
      mode: `poll` or `explicit`.
      seconds: how long.
      least_changes: how many changes there are even if they take longer.
    """
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "repository"
        make_repository(root)
        flags = [f"--model-control={mode}", "--version-policy=latest:2", "--log-level=error"]
        flags += ["--poll-seconds=0.2"] if mode == "poll" else ["--load-model=affine"]
        with ServerProcess(root, flags) as server:
            control = Control(server.address, is_explicit=mode == "explicit")
            end = time.monotonic() + seconds
            with Load(server.address) as load:
                load.await_more()
                for what in changes(root, control):
                    print(f"{mode}: {what}; {load.summary()}", file=sys.stderr)
                    load.await_more(5)
                    count += 1
                    if count >= least_changes and time.monotonic() > end:
                        break
            control.close()
            code = server.stop()
    if code:
        raise AssertionError(f"the server ended with exit code {code}")
    # Version N answers with the scale N, or N + 0.5 once it was replaced, and broken ones with 99.
    strangers = {
        (version, scale): answers
        for (version, scale), answers in load.versions.items()
        if scale not in (float(version), float(version) + 0.5)
    }
    failed = load.asked - load.answered + sum(strangers.values())
    return Outcome(load.asked, failed, count, f"{load.summary()}; strange versions: {strangers}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for both modes together")
    options = parser.parse_args()
    outcomes = [reload_under_load(mode, options.seconds / 2) for mode in ("poll", "explicit")]
    for outcome in outcomes:
        if outcome.failed:
            print(outcome.summary)
    failed = sum(outcome.failed for outcome in outcomes)
    print(
        f"reload: {sum(outcome.requests for outcome in outcomes)} requests, {failed} failed, "
        f"{sum(outcome.changes for outcome in outcomes)} changes"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
