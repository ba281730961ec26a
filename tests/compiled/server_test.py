"""Servers of compiled programs: on machines without a compiler, and on others than they are for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from slipway.program import load
from slipway.tests.compiled.program_path import TARGET, program_path
from slipway.tests.monitoring.traffic import get
from slipway.tests.monitoring.watched_server import WatchedServer
from slipway.tests.serving.clients import open_client
from slipway.tests.serving.server_process import (
    ServerProcess,
    server_command,
    server_environment,
)

_Array = np.ndarray[Any, Any]

_NO_VECTORS = {"ATEN_CPU_CAPABILITY": "default"}
_TOKENS = np.arange(8).reshape(2, 4)
_MARGINS = np.arange(5, dtype=np.float32)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A directory with the program."""
    shutil.copytree(
        program_path(), tmp_path / "models" / "ranker" / "1", copy_function=shutil.copyfile
    )
    return tmp_path / "models"


@pytest.fixture
def without_compiler(tmp_path: Path) -> dict[str, str]:
    """Environment variables of a machine on which no program is found."""
    (tmp_path / "empty").mkdir()
    return {"PATH": str(tmp_path / "empty"), "CXX": "/nowhere/g++"}


def _execution(client: InferenceServerClient) -> tuple[str, str]:
    parameters = client.get_model_config("ranker").config.parameters
    return (
        parameters["slipway_execution"].string_value,
        parameters["slipway_execution_reason"].string_value,
    )


def _answers(client: InferenceServerClient, tokens: _Array, margins: _Array) -> list[_Array]:
    inputs = []
    for name, values, datatype in (("tokens", tokens, "INT64"), ("margins", margins, "FP32")):
        inputs.append(InferInput(name, values.shape, datatype))
        inputs[-1].set_data_from_numpy(values)
    result = client.infer("ranker", inputs)
    return [result.as_numpy("scores"), result.as_numpy("doubled")]


def _expected() -> list[_Array]:
    answers = load(program_path())(torch.from_numpy(_TOKENS), torch.from_numpy(_MARGINS))
    return [answer.numpy() for answer in answers]


def test_it_serves_without_a_compiler(repository: Path, without_compiler: dict[str, str]) -> None:
    with (
        ServerProcess(repository, ["--compiled=require"], environment=without_compiler) as server,
        open_client(server.address) as client,
    ):
        assert _execution(client) == (TARGET, "compiled with the usual options")
        for found, expected in zip(_answers(client, _TOKENS, _MARGINS), _expected(), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        # What the contract refuses never reaches it, and what the model refuses does no harm.
        with pytest.raises(InferenceServerException, match="nearest legal value: 5") as refusal:
            _answers(client, _TOKENS, _MARGINS[:3])
        assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"
        with pytest.raises(InferenceServerException, match="selects an element") as refusal:
            _answers(client, _TOKENS + 1000, _MARGINS)
        assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert len(_answers(client, _TOKENS, _MARGINS)) == 2
        assert server.stop() == 0


def test_metrics_and_the_status_page_say_what_runs(repository: Path, tmp_path: Path) -> None:
    with WatchedServer(repository, tmp_path / "log", ["--compiled=require"]) as server:
        metrics, _ = get(server.monitoring + "/metrics")
        page, _ = get(server.monitoring)
    (line,) = [line for line in metrics.splitlines() if line.startswith("slipway_program_info{")]
    assert f'execution="{TARGET}"' in line
    assert f"{TARGET}: compiled with the usual options" in page


def test_another_instruction_set_falls_back_to_the_graph_and_says_so(repository: Path) -> None:
    with (
        ServerProcess(repository, ["--compiled=auto"], environment=_NO_VECTORS) as server,
        open_client(server.address) as client,
    ):
        execution, reason = _execution(client)
        assert execution == "graph"
        assert reason == (
            f"{TARGET}: it needs avx2; torch is restricted to DEFAULT here; "
            "run by torch's interpreter"
        )
        for found, expected in zip(_answers(client, _TOKENS, _MARGINS), _expected(), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_compiled_code_runs_only_if_the_server_is_told_so(repository: Path) -> None:
    with ServerProcess(repository) as server, open_client(server.address) as client:
        assert _execution(client) == (
            "graph",
            "compiled code is not used (--compiled=never); run by torch's interpreter",
        )


def test_python_runs_the_graph_if_the_server_is_told_so(repository: Path) -> None:
    with (
        ServerProcess(repository, ["--graph-engine=python"]) as server,
        open_client(server.address) as client,
    ):
        _, reason = _execution(client)
        assert reason == "compiled code is not used (--compiled=never); run by Python"
        for found, expected in zip(_answers(client, _TOKENS, _MARGINS), _expected(), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_program_without_the_code_that_is_required_is_not_served(repository: Path) -> None:
    result = subprocess.run(
        server_command(f"--repository={repository}", "--port=0", "--compiled=require"),
        env={**server_environment(), **_NO_VECTORS},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert "no compiled code can be used, and it is required" in result.stderr
    assert "it needs avx2; torch is restricted to DEFAULT here" in result.stderr
