"""A program with an operator of the user's own, one of whose methods is compiled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as triton
from runfiles import Runfiles

from slipway.tests.serving.clients import open_client


@pytest.fixture(scope="module")
def client() -> Iterator[triton.InferenceServerClient]:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    server = runfiles.Rlocation("slipway/tests/custom_ops/compiled_server")
    with subprocess.Popen(
        [server, "--port=0"],
        env=runfiles.EnvVars(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield open_client(process.stdout.readline().split()[-1])
        process.terminate()


@pytest.mark.parametrize(
    ("model", "expected"), [("scaler", [36.0, 72.0]), ("scaler.inverse", [1.0, 2.0])]
)
def test_the_server_runs_both_methods(
    client: triton.InferenceServerClient, model: str, expected: list[float]
) -> None:
    tensor = triton.InferInput("x", [2], "FP32")
    tensor.set_data_from_numpy(np.array([6.0, 12.0], np.float32))
    assert client.infer(model, [tensor]).as_numpy("output").tolist() == expected


def test_the_method_that_calls_no_such_operator_is_compiled(
    client: triton.InferenceServerClient,
) -> None:
    parameters = client.get_model_config("scaler.inverse").config.parameters
    assert parameters["slipway_execution"].string_value.startswith("cpu-avx2-torch")
    reason = parameters["slipway_execution_reason"].string_value
    assert reason.endswith("not compiled, and run as graphs: forward")
