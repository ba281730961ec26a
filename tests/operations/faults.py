"""Does to servers what happens to servers, and sees whether they live and lose no request.

bazel run //tests/operations:faults -- --only corrupt_version
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from slipway.tests.operations import own_faults, shared_faults
from slipway.tests.operations.load import Load
from slipway.tests.operations.own_faults import NotPossible
from slipway.tests.operations.scene import Scene, running

__all__ = ["Report", "try_faults"]


@dataclass(slots=True)
class Report:
    """What became of the servers, and of the requests.

    Attributes:
      tried: the names of the faults.
      problems: what went wrong, by the fault's name.
      left_out: why faults could not be tried, by name.
      lost: requests that got neither an answer nor an error, or a wrong answer.
    """

    tried: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    lost: int = 0

    @property
    def line(self) -> str:
        """Returns the result in one line."""
        survived = len(self.tried) - len(self.problems)
        return (
            f"faults: {len(self.tried)} tried, {survived} survived, "
            f"{self.lost} requests lost without an error"
        )


def try_faults(only: Collection[str] = ()) -> Report:
    """Tries the faults of these names, or all, and returns what happened."""
    report = Report()
    with ExitStack() as stack:
        scene: Scene | None = None
        for fault in shared_faults.FAULTS:
            if only and fault.__name__ not in only:
                continue
            if scene is None or scene.server.process.poll() is not None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                scene = stack.enter_context(
                    running(folder, "--model-control=poll", "--poll-seconds=0.2")
                )
            _try(report, fault.__name__, _under_load, fault, scene)
    for own in own_faults.FAULTS:
        if not only or own.__name__ in only:
            with tempfile.TemporaryDirectory() as name:
                _try(report, own.__name__, own, Path(name))
    return report


def _try(report: Report, name: str, run: Callable[..., int], *arguments: object) -> None:
    print(f"{name} ...", flush=True)
    try:
        report.lost += run(*arguments)
    except NotPossible as reason:
        report.left_out[name] = str(reason)
        print(f"{name} cannot be tried here: {reason}", flush=True)
        return
    except Exception as error:
        report.problems[name] = f"{type(error).__name__}: {error}"
        print("".join(traceback.format_exception(error)), flush=True)
    report.tried.append(name)


def _under_load(fault: Callable[[Scene], None], scene: Scene) -> int:
    """Returns how many requests were lost while the fault was tried."""
    with Load(scene.address) as load:
        load.await_more()
        fault(scene)
        load.await_more()
    scene.probe()
    assert load.asked == load.answered, load.summary()
    return load.lost + len(load.wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="FAULT", help="repeatable")
    report = try_faults(parser.parse_args().only)
    for name, problem in report.problems.items():
        print(f"{name}: {problem}")
    print(report.line)
    return 1 if report.problems or report.lost or not report.tried else 0


if __name__ == "__main__":
    sys.exit(main())
