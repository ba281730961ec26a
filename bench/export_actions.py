"""Small exports as requests to a warm worker, as sandboxed actions, and as plain processes.

    bazel run //bench:export_actions

Builds the targets //bench:small_0 to small_19 in this workspace, a few at a time by each way in
turn, and every time with another value of an input that the model does not read. Prints one JSON
object: the median seconds of an export by each way (of actions as Bazel's own profile has them),
and how many times faster a worker is than a sandbox.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runfiles import Runfiles

from slipway.bench.measure import elapsed, print_figures

_EXPORTS = 20
_ROUNDS = 4
_SALT = itertools.count(os.getpid() * 1000)
# As the export action has them: export/private/action.bzl.
_VARIABLES = {
    "ATEN_CPU_CAPABILITY": "default",
    "CUDA_VISIBLE_DEVICES": "",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
}


def _actions(workspace: Path, folder: Path, targets: Sequence[str], *flags: str) -> list[float]:
    """Builds targets, one action after the other; returns the seconds of each export."""
    profile = folder / "profile.gz"
    command = [
        str(workspace / "bazelw"),
        "build",
        "--noshow_progress",
        "--jobs=1",
        f"--define=SALT={next(_SALT)}",
        f"--profile={profile}",
        *flags,
        *targets,
    ]
    result = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
    events = json.loads(gzip.decompress(profile.read_bytes()))["traceEvents"]
    seconds = [
        event["dur"] / 1e6
        for event in events
        if event.get("cat") == "action processing"
        and event["name"].removeprefix("Exporting ") in targets
    ]
    if len(seconds) != len(targets):
        raise SystemExit(f"expected {len(targets)} exports, the profile has {len(seconds)}")
    return seconds


def _processes(workspace: Path, folder: Path, targets: Sequence[str]) -> list[float]:
    runfiles = Runfiles.Create()
    exporter = runfiles and runfiles.Rlocation("slipway/export/exporter")
    if not runfiles or not exporter:
        raise SystemExit("the runfiles have no slipway/export/exporter: start this with bazel run")
    environment = os.environ | runfiles.EnvVars() | _VARIABLES

    def export(target: str) -> None:
        command = [
            exporter,
            f"--label={target}",
            "--entry_point=examples.mlp.model:export_spec",
            f"--import_root={workspace}",
            f"--output={folder}/{next(_SALT)}",
        ]
        subprocess.run(command, env=environment, check=True)

    return [elapsed(lambda target=target: export(target)) for target in targets]  # type: ignore[misc]


def main() -> None:
    workspace = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    targets = [f"//bench:small_{number}" for number in range(_EXPORTS)]
    worker: list[float] = []
    one_shot: list[float] = []
    process: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Starts the worker, and brings the files of each way into memory.
        _actions(workspace, folder, targets[:1])
        _actions(workspace, folder, targets[:1], "--config=hermetic")
        _processes(workspace, folder, targets[:1])
        for start in range(0, _EXPORTS, _EXPORTS // _ROUNDS):
            part = targets[start : start + _EXPORTS // _ROUNDS]
            worker += _actions(workspace, folder, part)
            one_shot += _actions(workspace, folder, part, "--config=hermetic")
            process += _processes(workspace, folder, part)
    medians = {
        "worker_s": statistics.median(worker),
        "one_shot_s": statistics.median(one_shot),
        "process_s": statistics.median(process),
    }
    print_figures(medians | {"worker_speedup": medians["one_shot_s"] / medians["worker_s"]})


if __name__ == "__main__":
    main()
