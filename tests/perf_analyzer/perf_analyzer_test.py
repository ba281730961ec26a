"""perf_analyzer, Triton's own load generator, drives the server and sees no request fail.

The binary comes with tritonclient. It is linked with libcudart, which comes from PyPI, and with
libb64, which comes from the machine's Debian.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient
from runfiles import Runfiles

from slipway.tests.serving.clients import open_client
from slipway.tests.serving.programs import write_affine, write_lookup
from slipway.tests.serving.server_process import ServerProcess

SITE = Path(tritonclient.__file__).parents[1]
PERF_ANALYZER = SITE / "bin" / "perf_analyzer"
CUDART = SITE / "nvidia" / "cuda_runtime" / "lib"


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    library = runfiles.Rlocation("debian_libb64/lib/libb64.so.0d")
    if library is None or not Path(library).exists():
        pytest.skip("perf_analyzer needs Debian's libb64, and this machine has no apt")
    return {**os.environ, "LD_LIBRARY_PATH": f"{Path(library).parent}:{CUDART}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("repository")
    write_affine(root / "affine" / "1")
    write_lookup(root / "lookup" / "1")
    with ServerProcess(root, ["--allow-client-shared-memory"]) as process:
        yield process


def counts(server: ServerProcess, model: str) -> tuple[int, int]:
    """Returns how many requests succeeded and failed so far."""
    with open_client(server.address) as client:
        (statistics,) = client.get_inference_statistics(model).model_stats
    return statistics.inference_stats.success.count, statistics.inference_stats.fail.count


@pytest.mark.parametrize("memory", ["none", "system"])
@pytest.mark.parametrize(
    ("mode", "flags"),
    [("sync", ["--sync"]), ("async", ["--async"]), ("streaming", ["--async", "--streaming"])],
)
def test_no_request_fails(
    server: ServerProcess, environment: dict[str, str], mode: str, flags: list[str], memory: str
) -> None:
    before = counts(server, "affine")
    measure(server, environment, "affine", [*flags, f"--shared-memory={memory}", "-b2"])
    after = counts(server, "affine")
    assert after[0] - before[0] >= 50
    assert after[1] == before[1] == 0


def test_several_inputs_of_given_shapes(server: ServerProcess, environment: dict[str, str]) -> None:
    shapes = ["--shape=tokens:3", "--shape=mask:3", "--input-data=zero"]
    measure(server, environment, "lookup", ["--async", *shapes, "--shared-memory=system"])
    succeeded, failed = counts(server, "lookup")
    assert succeeded >= 50
    assert failed == 0


def measure(
    server: ServerProcess, environment: dict[str, str], model: str, flags: list[str]
) -> None:
    """Runs perf_analyzer, which must end well and have made 50 requests at least."""
    command = [
        str(PERF_ANALYZER),
        "-m",
        model,
        "-u",
        server.address,
        "-i",
        "grpc",
        "--concurrency-range=4",
        "--measurement-mode=count_windows",
        "--measurement-request-count=50",
        # How steady the machine is does not matter here.
        "--stability-percentage=999",
        *flags,
    ]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    counted = re.search(r"Request count: (\d+)", result.stdout)
    assert counted is not None, result.stdout
    assert int(counted[1]) >= 50
