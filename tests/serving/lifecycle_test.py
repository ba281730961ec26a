"""Starting and stopping: exit codes, messages, and requests that are under way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from slipway.tests.serving.clients import open_client
from slipway.tests.serving.programs import write_affine
from slipway.tests.serving.requests import infer_request, zeros
from slipway.tests.serving.server_process import (
    ServerProcess,
    server_command,
    server_environment,
)

CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]


def run_server(*flags: str) -> subprocess.CompletedProcess[str]:
    """Returns how a server ended that could not start."""
    return subprocess.run(
        server_command(*flags),
        env=server_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_requests_finish_and_exits_with_0(
    repository: Path, number: signal.Signals
) -> None:
    with ServerProcess(repository) as server, grpc.insecure_channel(server.address) as channel:
        slow = infer_request("power", x=zeros("FP32", [1024, 1024]))
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=type(slow).SerializeToString,
        )
        calls = [infer.future(slow, timeout=120) for _ in range(3)]
        # Once one is answered the others have arrived: they were sent while it ran.
        next(item for item in calls if item.result())
        server.process.send_signal(number)
        assert all(item.result() for item in calls)
        assert server.process.wait(timeout=60) == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""


def test_a_signal_before_there_is_a_server_is_exit_code_0(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    os.mkfifo(path)
    process = subprocess.Popen(
        server_command(f"--config={path}", "--port=0"), env=server_environment()
    )
    # Opened once it is read, which is the first thing that a server does.
    with path.open("w") as configuration:
        process.terminate()
        configuration.write(f"[repository]\npath = {json.dumps(str(repository))}\n")
    assert process.wait(timeout=120) == 0


def test_a_terminal_that_is_closed_is_nothing_to_nohup(repository: Path) -> None:
    command = ["nohup", *server_command(f"--repository={repository}", "--port=0")]
    with subprocess.Popen(
        command,
        env=server_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("slipway: serving")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR1)
        # The signals are taken one after the other: it goes on after the first.
        assert any("SIGUSR1: the log is complete" in line for line in process.stderr)
        process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("container", "number"),
    [([], signal.SIGTERM), ([], signal.SIGINT), (CONTAINER, signal.SIGTERM)],
    ids=["terminated", "interrupted", "first process of a container"],
)
def test_a_second_signal_ends_it_at_once(
    repository: Path, container: list[str], number: signal.Signals
) -> None:
    if container and subprocess.run([*container, "true"], check=False).returncode:
        pytest.skip("there are no namespaces of processes here")
    with subprocess.Popen(
        [*container, *server_command(f"--repository={repository}", "--port=0")],
        env=server_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().split()[-1]
        server = process.pid
        if container:
            server = int(Path(f"/proc/{server}/task/{server}/children").read_text())
        with grpc.insecure_channel(address) as channel:
            slow = infer_request("power", x=zeros("FP32", [2048, 2048]))
            infer = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=type(slow).SerializeToString,
            )
            calls = [infer.future(slow, timeout=120) for _ in range(10)]
            next(item for item in calls if item.result())
            os.kill(server, signal.SIGTERM)
            assert any("draining" in line for line in process.stderr)
            os.kill(server, number)
            assert process.wait(timeout=15) == (128 + number if container else -number)
            assert "Traceback" not in process.stderr.read()


def test_a_watch_sees_the_server_drain_and_does_not_hold_it_up(repository: Path) -> None:
    with ServerProcess(repository) as server, grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=60
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.process.terminate()
        # The end of the watch may overtake the last status.
        with pytest.raises(grpc.RpcError) as caught:
            for response in watch:
                assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert caught.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        assert server.process.wait(timeout=15) == 0


@pytest.mark.parametrize(("size", "count"), [(1024, 20), (512, 200)])
def test_requests_that_outlast_the_grace_period_are_cut_off(
    repository: Path, tmp_path: Path, size: int, count: int
) -> None:
    """Those that run for long, and those that wait for others that take but a moment."""
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        ServerProcess(repository, ["--grace-seconds=0"], log=file) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        slow = infer_request("power", x=zeros("FP32", [size, size]))
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=type(slow).SerializeToString,
        )
        calls = [infer.future(slow, timeout=120) for _ in range(count)]
        next(item for item in calls if item.result())
        server.process.terminate()
        failed = [item for item in calls if item.exception() is not None]
        assert failed
        assert server.process.wait(timeout=60) == 1
    assert "requests were still running after 0 seconds" in log.read_text()


def test_a_port_that_is_taken_is_exit_code_1(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_server(f"--repository={repository}", f"--port={port}")
    assert result.returncode == 1
    assert (
        f"slipway: error: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "--port takes another port, 0 for any that is free\n"
    ) in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_standard_output_that_takes_nothing_stops_nothing(repository: Path) -> None:
    """As that of a server whose output goes to a full disk."""
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            server_command(f"--repository={repository}", "--port=0"),
            env=server_environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    with process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "slipway: serving" in line)
        assert "cannot write to standard output: No space left on device" in line
        with open_client(line.split()[-1].strip("'")) as client:
            assert client.is_model_ready("affine")
        process.terminate()
        assert process.wait(timeout=60) == 0


def test_a_check_whose_settings_cannot_be_written_says_so(repository: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            server_command(f"--repository={repository}", "--check"),
            env=server_environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr.endswith(
        "slipway: error: cannot write to standard output: No space left on device\n"
    )
    assert "Traceback" not in result.stderr


def test_a_check_whose_reader_has_read_enough_finds_nothing_wrong(repository: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        result = subprocess.run(
            server_command(f"--repository={repository}", "--check"),
            env=server_environment(),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 0
    assert "slipway: error" not in result.stderr
    assert "Traceback" not in result.stderr


def test_a_repository_that_does_not_exist_is_exit_code_2(tmp_path: Path) -> None:
    result = run_server(f"--repository={tmp_path / 'missing'}", "--port=0")
    assert result.returncode == 2
    assert result.stderr.endswith(
        f"slipway: error: cannot read the model repository {tmp_path / 'missing'}: "
        "No such file or directory\n"
    )
    assert "Traceback" not in result.stderr


def test_a_repository_without_a_program_that_loads_is_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    result = run_server(f"--repository={tmp_path}", "--port=0")
    assert result.returncode == 1
    assert "model 'm' version 1 is unavailable" in result.stderr
    assert "slipway: error: no program of the repository could be loaded" in result.stderr
    assert result.stdout == ""


def test_why_no_version_of_a_model_is_served_is_said(repository: Path) -> None:
    result = run_server(f"--repository={repository}", "--port=0", "--version-policy=7")
    assert result.returncode == 1
    assert "model 'affine': the version policy 7 takes none of its versions: 1, 2, 3\n" in (
        result.stderr
    )
    assert "no program of the repository could be loaded; the reasons are above" in result.stderr


def test_a_device_that_is_not_there_is_exit_code_2(repository: Path) -> None:
    result = run_server(f"--repository={repository}", "--port=0", "--device=cuda:99")
    assert result.returncode == 2
    assert "slipway: error: --device is cuda:99, but" in result.stderr


@pytest.mark.parametrize(
    "flag",
    [
        "--port=65536",
        "--port=x",
        "--instances=0",
        "--threads=-1",
        "--max-batch-size=0",
        "--batch-delay-ms=-1",
        "--max-queue-requests=0",
        "--max-queue-bytes=0",
        "--max-request-bytes=x",
        "--grace-seconds=-1",
        "--log-level=loud",
    ],
)
def test_flags_out_of_range_are_exit_code_2(repository: Path, flag: str) -> None:
    result = run_server(f"--repository={repository}", flag)
    assert result.returncode == 2
    assert flag.partition("=")[0] in result.stderr


def test_a_model_without_a_ready_version_makes_the_server_not_ready(tmp_path: Path) -> None:
    write_affine(tmp_path / "good" / "1")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    with ServerProcess(tmp_path) as server:
        assert server.ready_line.startswith("slipway: serving 1 programs at ")
        with open_client(server.address) as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
            assert client.is_model_ready("good")
        assert server.stop() == 0


def test_a_relative_repository_is_seen_from_where_bazel_run_was_called(tmp_path: Path) -> None:
    write_affine(tmp_path / "models" / "affine" / "1")
    result = subprocess.Popen(
        server_command("--repository=models", "--port=0"),
        env={**server_environment(), "BUILD_WORKING_DIRECTORY": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with result:
        assert result.stdout is not None
        assert result.stdout.readline().startswith("slipway: serving 1 programs at ")
        result.terminate()
        assert result.wait(timeout=60) == 0
