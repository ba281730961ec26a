"""What clients learn when things go wrong, and what the server needs from its surroundings."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from slipway.tests.security.conftest import Outcome
from slipway.tests.serving.programs import write_affine
from slipway.tests.serving.requests import call
from slipway.tests.serving.server_process import (
    ServerProcess,
    server_command,
    server_environment,
)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which affine/1 is right, and each other version is broken in its own way."""
    root = tmp_path_factory.mktemp("secret-place")
    for version in range(1, 6):
        write_affine(root / "affine" / str(version))
    shard = next((root / "affine" / "2").glob("**/*.safetensors"))
    shard.unlink()
    shard = next((root / "affine" / "3").glob("**/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4])
    shard = next((root / "affine" / "4").glob("**/*.safetensors"))
    content = shard.read_bytes()
    shard.unlink()
    outside = root.parent / "outside.safetensors"
    outside.write_bytes(content)
    shard.symlink_to(outside)
    shutil.rmtree(root / "affine" / "5")
    (root / "affine" / "5").mkdir()
    return root


@pytest.fixture(scope="module")
def server(broken: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    # As an orchestrator mounts it: by a link.
    link = tmp_path_factory.mktemp("other-place") / "models"
    link.symlink_to(broken)
    with ServerProcess(link, ["--log-level=error"]) as process:
        yield process


def test_no_answer_names_a_path(
    server: ServerProcess, broken: Path, requests: dict[str, Any]
) -> None:
    texts: list[str] = []
    with grpc.insecure_channel(server.address) as channel:
        index = call(channel, "RepositoryIndex", service_pb2.RepositoryIndexRequest())
        reasons = {model.version: model.reason for model in index.models}
        assert [version for version, reason in reasons.items() if reason] == ["2", "3", "4", "5"]
        texts += reasons.values()
        for version in "12345":
            request = service_pb2.ModelInferRequest()
            request.CopyFrom(requests["ModelInfer"])
            request.model_version = version
            request.inputs[0].shape[0] = 100 if version == "1" else 1
            with pytest.raises(grpc.RpcError) as caught:
                call(channel, "ModelInfer", request)
            texts.append(str(caught.value.details()))
        for method, request in requests.items():
            try:
                texts.append(str(call(channel, method, request)))
            except grpc.RpcError as error:
                texts.append(str(error.details()))
    for text in texts:
        for part in (*broken.parts[1:], "other-place", "outside", "site-packages", "Traceback"):
            # A part such as `tmp` may be in any word.
            assert f"/{part}/" not in text
        assert "secret-place" not in text


def test_control_is_for_this_host_unless_told_otherwise(
    server: ServerProcess, outcome: Outcome
) -> None:
    with grpc.insecure_channel(server.address) as channel:
        assert outcome(channel, "RepositoryModelLoad") == "FAILED_PRECONDITION"


def state_of(root: Path) -> dict[str, tuple[int, int]]:
    paths = [root, *root.rglob("*")]
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in paths}


def test_it_needs_no_privileges_and_writes_nothing(tmp_path: Path, outcome: Outcome) -> None:
    root = tmp_path / "models"
    write_affine(root / "affine" / "1")
    for path in [*root.rglob("*"), root]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state_of(tmp_path)
    command = server_command(
        f"--repository={root}",
        "--port=0",
        "--model-control=poll",
        "--poll-seconds=0.05",
        "--no-control-from-loopback",
    )
    if os.geteuid() == 0:
        # What makes root more than the owner of its files.
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", *command]
    process = subprocess.Popen(
        command,
        env={**server_environment(), "HOME": "/nonexistent"},
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "CapEff:\t0000000000000000\n" in status
        with grpc.insecure_channel(address) as channel:
            assert outcome(channel, "ModelInfer") == "OK"
            # Not even from here, where it was told so.
            assert outcome(channel, "RepositoryModelLoad") == "PERMISSION_DENIED"
        process.terminate()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)
    assert state_of(tmp_path) == before
