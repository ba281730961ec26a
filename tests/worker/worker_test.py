"""The exporter as a persistent worker: its answers, and what one request leaves for the next."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import time
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


def command() -> tuple[str, dict[str, str]]:
    """Returns the exporter and its environment."""
    runfiles = Runfiles.Create()
    assert runfiles is not None
    exporter = runfiles.Rlocation("slipway/export/exporter")
    assert exporter is not None
    environment = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    return exporter, runfiles.EnvVars() | environment


def one_shot(function: str, output: Path) -> subprocess.CompletedProcess[str]:
    exporter, environment = command()
    return subprocess.run(
        [exporter, *arguments(function, output)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


class Worker:
    def __init__(self, **environment: str) -> None:
        exporter, common = command()
        self.process = subprocess.Popen(
            [exporter, "--persistent_worker"],
            env=common | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._number = 0

    def send(self, function: str, output: Path) -> None:
        self._number += 1
        parameters = output.with_suffix(".params")
        parameters.write_text("\n".join(arguments(function, output)) + "\n")
        self._write({"arguments": [f"@{parameters}"], "requestId": self._number, "inputs": []})

    def cancel(self) -> None:
        """Cancels the last request, as Bazel does."""
        self._write({"requestId": self._number, "cancel": True})

    def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def ask(self, function: str, output: Path) -> dict[str, Any]:
        self.send(function, output)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 60)[0], "no answer"
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert answer["requestId"] == self._number
        return answer


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    running = Worker()
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


def is_running(process: int) -> bool:
    """Returns whether there is such a process, and it has not ended."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("function", ["small", "drawn_at_import"])
def test_bytes_are_those_of_a_process_of_its_own_whatever_came_before(
    worker: Worker, tmp_path: Path, function: str
) -> None:
    alone = one_shot(function, tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    assert worker.ask(function, tmp_path / "first")["exitCode"] == 0
    assert worker.ask("leaves_traces", tmp_path / "between")["exitCode"] == 0
    answer = worker.ask("looks_for_traces", tmp_path / "traces")
    assert answer["exitCode"] == 0, answer["output"]
    assert worker.ask(function, tmp_path / "second")["exitCode"] == 0
    expected = content(tmp_path / "alone")
    assert "program.pb" in expected
    assert content(tmp_path / "first") == expected
    assert content(tmp_path / "second") == expected


FAILURES = [
    ("exits", "ended its process with exit status 7"),
    ("exits_as_if_all_were_well", "ended its process with exit status 0"),
    ("exits_when_it_is_called", "ended its process with exit status 0"),
    ("is_killed", "about to be killed\nthe export was ended by signal 9 (SIGKILL), which is what"),
    ("crashes", "the export was ended by signal 11 (SIGSEGV): native code that the model calls"),
    ("recurses", "RecursionError: maximum recursion depth exceeded"),
    ("recurses_when_it_is_called", "RecursionError: maximum recursion depth exceeded"),
    ("branches", "data-dependent control flow"),
    ("missing", "has no function 'missing'"),
]


@pytest.mark.parametrize(("function", "text"), FAILURES)
def test_a_request_that_fails_fails_alone(
    worker: Worker, tmp_path: Path, function: str, text: str
) -> None:
    answer = worker.ask(function, tmp_path / "failing")
    assert answer["exitCode"] != 0
    assert text in answer["output"]
    assert "what to do: " in answer["output"]
    assert not (tmp_path / "failing").exists()
    assert worker.process.poll() is None


def test_of_a_crash_the_line_of_the_model_is_named(worker: Worker, tmp_path: Path) -> None:
    answer = worker.ask("crashes", tmp_path / "failing")
    assert re.search(r'models\.py", line \d+ in crashes\n', answer["output"])


def test_the_same_worker_serves_on_after_failures(worker: Worker, tmp_path: Path) -> None:
    assert worker.ask("is_killed", tmp_path / "failing")["exitCode"] == 1
    assert worker.ask("small", tmp_path / "after")["exitCode"] == 0


def test_a_process_of_its_own_fails_in_the_same_words(worker: Worker, tmp_path: Path) -> None:
    done = one_shot("exits_as_if_all_were_well", tmp_path / "failing")
    assert done.returncode == 1
    answer = worker.ask("exits_as_if_all_were_well", tmp_path / "failing")
    assert done.stdout + done.stderr == answer["output"]


def test_what_a_model_prints_is_output_and_no_answer(worker: Worker, tmp_path: Path) -> None:
    answer = worker.ask("prints", tmp_path / "program")
    assert answer["exitCode"] == 0
    assert "a model may print" in answer["output"]
    assert "its programs too" in answer["output"]


def test_of_a_very_long_log_the_two_ends_are_kept(worker: Worker, tmp_path: Path) -> None:
    answer = worker.ask("prints_very_much", tmp_path / "program")
    assert answer["exitCode"] == 0
    assert answer["output"].startswith("line 0 of very many")
    assert answer["output"].endswith("line 99999 of very many that nobody will ever read\n")
    assert re.search(r"\n… \d+ bytes left out …\n", answer["output"])
    assert len(answer["output"]) < 300_000


def test_requests_are_not_for_the_model_to_read(worker: Worker, tmp_path: Path) -> None:
    answer = worker.ask("reads_standard_input", tmp_path / "program")
    assert answer["exitCode"] == 0, answer["output"]


def test_threads_do_not_hold_up_the_end(worker: Worker, tmp_path: Path) -> None:
    assert worker.ask("starts_a_thread", tmp_path / "program")["exitCode"] == 0


def test_processes_end_with_the_request_that_started_them(worker: Worker, tmp_path: Path) -> None:
    answer = worker.ask("starts_a_process", tmp_path / "program")
    assert answer["exitCode"] == 0, answer["output"]
    process = int(re.search(r"started (\d+)", answer["output"])[1])  # type: ignore[index]
    wait_until(lambda: not is_running(process))


@contextlib.contextmanager
def at_work(tmp_path: Path) -> Iterator[tuple[Worker, int]]:
    """Yields a worker with an export under way that takes an hour, and the process of that."""
    started = tmp_path / "started"
    busy = Worker(STARTED=str(started))
    with busy.process as process:
        try:
            busy.send("takes_long", tmp_path / "program")
            wait_until(lambda: started.exists() and started.read_text())
            yield busy, int(started.read_text())
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_export_under_way_ends_with_its_worker(tmp_path: Path, number: int) -> None:
    """As when a build is cancelled whose workers have no sandbox."""
    with at_work(tmp_path) as (busy, export):
        busy.process.send_signal(number)
        busy.process.wait(timeout=30)
        wait_until(lambda: not is_running(export))


def test_a_cancelled_export_ends_and_the_worker_serves_on(tmp_path: Path) -> None:
    with at_work(tmp_path) as (busy, export):
        busy.cancel()
        assert busy.answer()["wasCancelled"]
        assert not is_running(export)
        assert busy.ask("small", tmp_path / "after")["exitCode"] == 0


def test_a_request_that_is_cancelled_after_its_answer_has_one_answer(
    worker: Worker, tmp_path: Path
) -> None:
    assert worker.ask("small", tmp_path / "program")["exitCode"] == 0
    worker.cancel()
    assert worker.ask("small", tmp_path / "after")["exitCode"] == 0


def test_the_export_under_way_ends_when_there_is_nobody_to_answer(tmp_path: Path) -> None:
    """As when Bazel itself is killed."""
    with at_work(tmp_path) as (busy, export):
        assert busy.process.stdin is not None
        busy.process.stdin.close()
        assert busy.process.wait(timeout=30) == 0
        wait_until(lambda: not is_running(export))
