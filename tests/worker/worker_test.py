"""The exporter as a persistent worker: its answers, and what one request leaves for the next."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runfiles import Runfiles

# This file is RUNFILES/slipway/tests/worker/worker_test.py.
ROOT = Path(__file__).absolute().parents[2]


def arguments(function: str, output: Path) -> list[str]:
    return [
        "--label=//tests/worker:it",
        f"--entry_point=tests.worker.models:{function}",
        f"--import_root={ROOT}",
        f"--output={output}",
    ]


class Worker:
    def __init__(self, *flags: str) -> None:
        runfiles = Runfiles.Create()
        assert runfiles is not None
        self.process = subprocess.Popen(
            [runfiles.Rlocation("slipway/export/exporter"), *flags],
            env=runfiles.EnvVars() | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._number = 0

    def ask(self, function: str, output: Path) -> dict[str, Any]:
        self._number += 1
        parameters = output.with_suffix(".params")
        parameters.write_text("\n".join(arguments(function, output)) + "\n")
        request = {"arguments": [f"@{parameters}"], "requestId": self._number, "inputs": []}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert answer["requestId"] == self._number
        return answer


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    running = Worker("--persistent_worker")
    yield running
    assert running.process.stdin is not None
    running.process.stdin.close()
    # The end of requests is the end of the worker.
    assert running.process.wait(timeout=30) == 0


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("function", ["small", "drawn_at_import"])
def test_bytes_are_those_of_a_process_of_its_own_whatever_came_before(
    worker: Worker, tmp_path: Path, function: str
) -> None:
    alone = subprocess.run(
        [worker.process.args[0], *arguments(function, tmp_path / "alone")],  # type: ignore[index]
        env=Runfiles.Create().EnvVars(),  # type: ignore[union-attr]
        check=False,
    )
    assert alone.returncode == 0
    assert worker.ask(function, tmp_path / "first")["exitCode"] == 0
    assert worker.ask("leaves_traces", tmp_path / "between")["exitCode"] == 0
    assert worker.ask(function, tmp_path / "second")["exitCode"] == 0
    expected = content(tmp_path / "alone")
    assert "program.pb" in expected
    assert content(tmp_path / "first") == expected
    assert content(tmp_path / "second") == expected


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("exits", ""),
        ("is_killed", "about to be killed\nthe export was ended by signal 9"),
        ("branches", "data-dependent control flow"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_a_request_that_fails_fails_alone(
    worker: Worker, tmp_path: Path, function: str, text: str
) -> None:
    answer = worker.ask(function, tmp_path / "failing")
    assert answer["exitCode"] != 0
    assert text in answer["output"]
    assert worker.ask("small", tmp_path / "after")["exitCode"] == 0


def test_what_a_model_prints_is_output_and_no_answer(worker: Worker, tmp_path: Path) -> None:
    answer = worker.ask("prints", tmp_path / "program")
    assert answer["exitCode"] == 0
    assert "a model may print" in answer["output"]
