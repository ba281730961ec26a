"""How long the server takes to be ready, against a Python process that only imports torch.

    bazel run //bench:server_start

The server loads the three example programs. Prints one JSON object: seconds for each, and their
ratio.
"""

from __future__ import annotations

import subprocess
import sys

from runfiles import Runfiles

from slipway.bench.measure import elapsed, interleave, print_figures


def main() -> None:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    server = runfiles.Rlocation("slipway/examples/server")
    environment = runfiles.EnvVars()
    assert server is not None

    def start_server() -> None:
        with subprocess.Popen(
            [server, "--port=0", "--log-level=error"], env=environment, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            ready = process.stdout.readline()
            process.kill()
            assert ready, "the server did not start"

    def import_torch() -> None:
        path = {"PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", "import torch"], env=path, check=True)

    medians = interleave(
        {
            "ready_s": lambda: elapsed(start_server),
            "import_torch_s": lambda: elapsed(import_torch),
        },
        rounds=7,
    )
    print_figures(medians | {"ratio": medians["ready_s"] / medians["import_torch_s"]})


if __name__ == "__main__":
    main()
