"""An export as a sandboxed Bazel action, against the same exporter as a plain process; and a build
in which nothing has changed.

    bazel run //bench:export_action

Builds //bench:probe in this workspace again and again, each time with another value of an input
that the model does not read. Prints one JSON object: seconds for the action, as Bazel's own profile
has it, and for the process, their ratio, and seconds for a build of everything with nothing to do.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import subprocess
import tempfile
from pathlib import Path

from runfiles import Runfiles

from slipway.bench.measure import elapsed, interleave, print_figures

_SALT = itertools.count(os.getpid() * 1000)


def main() -> None:
    workspace = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    runfiles = Runfiles.Create()
    assert runfiles is not None
    exporter = runfiles.Rlocation("slipway/export/exporter")
    assert exporter is not None
    environment = os.environ | runfiles.EnvVars()

    def build(*arguments: str) -> None:
        command = [str(workspace / "bazelw"), "build", "--noshow_progress", *arguments]
        result = subprocess.run(command, cwd=workspace, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")

    with tempfile.TemporaryDirectory() as folder:

        def action() -> float:
            profile = Path(folder, "profile.gz")
            build("//bench:probe", f"--define=SALT={next(_SALT)}", f"--profile={profile}")
            events = json.loads(gzip.decompress(profile.read_bytes()))["traceEvents"]
            durations = [
                event["dur"]
                for event in events
                if event.get("name") == "Exporting //bench:probe"
                and event.get("cat") == "action processing"
            ]
            assert len(durations) == 1, f"expected one export, the profile has {len(durations)}"
            return durations[0] / 1e6

        def process() -> float:
            command = [
                exporter,
                "--label=//bench:probe",
                "--entry_point=examples.mlp.model:export_spec",
                f"--import_root={workspace}",
                f"--output={folder}/{next(_SALT)}",
            ]
            fixed = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"}
            return elapsed(lambda: subprocess.run(command, env=environment | fixed, check=True))

        medians = interleave({"action_s": action, "process_s": process}, rounds=5)
        build("//...")
        null = interleave({"null_build_s": lambda: elapsed(lambda: build("//..."))}, rounds=5)
    print_figures(medians | {"ratio": medians["action_s"] / medians["process_s"]} | null)


if __name__ == "__main__":
    main()
