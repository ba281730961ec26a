"""A program with an operator of the user's own, and two methods, from target to answer."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as triton
from runfiles import Runfiles

from slipway.program import OperatorMismatchError, load
from slipway.tests.serving.clients import open_client


@pytest.fixture(scope="module")
def runfiles() -> Runfiles:
    found = Runfiles.Create()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def client(runfiles: Runfiles) -> Iterator[triton.InferenceServerClient]:
    server = runfiles.Rlocation("slipway/tests/custom_ops/server")
    with subprocess.Popen(
        [server, "--port=0"], env=runfiles.EnvVars(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield open_client(process.stdout.readline().split()[-1])
        process.terminate()


def infer(client: triton.InferenceServerClient, model: str) -> list[float]:
    tensor = triton.InferInput("x", [2], "FP32")
    tensor.set_data_from_numpy(np.array([6.0, 12.0], np.float32))
    result: list[float] = client.infer(model, [tensor]).as_numpy("output").tolist()
    return result


def test_the_server_runs_the_operator(client: triton.InferenceServerClient) -> None:
    assert infer(client, "scaler") == [36.0, 72.0]


def test_other_methods_are_models_of_their_own(client: triton.InferenceServerClient) -> None:
    assert infer(client, "scaler.inverse") == [1.0, 2.0]


def test_an_operator_that_nobody_allowed_is_refused(runfiles: Runfiles) -> None:
    program = runfiles.Rlocation("slipway/tests/custom_ops/scaler.program")
    with pytest.raises(OperatorMismatchError, match=r"'doubling::twice\.default' may not be"):
        load(program)
