"""The log of a server process: its format, the requests' ids, and levels that change."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient, service_pb2

from slipway.tests.monitoring.traffic import eventually, infer, refuse
from slipway.tests.monitoring.watched_server import WatchedServer
from slipway.tests.serving.clients import open_client
from slipway.tests.serving.requests import call
from slipway.tests.serving.server_process import server_command, server_environment


def lines(server: WatchedServer) -> list[dict[str, Any]]:
    """Returns the lines of a log that is JSON all through."""
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def test_json_lines_name_the_request(repository: Path, tmp_path: Path) -> None:
    flags = ["--log-format=json", "--access-log-sample=1"]
    with (
        WatchedServer(repository, tmp_path / "log", flags) as server,
        open_client(server.address) as client,
    ):
        infer(client, request_id="by-protocol", headers={"x-request-id": "by-metadata"})
        refuse(client, rows=20, request_id="seven\nlines")
        refuse(client, rows=20, width=5)
        refuse(client, model='no"\nmodel')
        assert server.stop() == 0
        access = [line for line in lines(server) if line["logger"] == "slipway.access"]
        other = [line for line in lines(server) if line["logger"] == "slipway.serving.inference"]

    # What was answered by another thread may be written later.
    access.sort(key=lambda line: line["code"] != "OK")
    assert [line["code"] for line in access] == [
        "OK",
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
    ]
    first = access[0]
    assert (first["request_id"], first["model"], first["version"]) == ("by-metadata", "affine", 1)
    assert (first["rows"], first["batch_rows"], first["batch_requests"]) == (2, 2, 1)
    assert 0 < first["queue_seconds"] < first["total_seconds"]
    assert access[1]["request_id"] == other[0]["request_id"] == "seven?lines"
    assert "request_id" not in access[2]
    assert access[3]["model"] == ""  # what a client made up is no model
    assert "allowed: 1..8" in other[0]["message"]


def test_why_it_does_not_start_is_an_object_too(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    result = subprocess.run(
        server_command(f"--repository={tmp_path / 'repository'}", "--port=0", "--log-format=json"),
        env=server_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 2
    last = [json.loads(line) for line in result.stderr.splitlines()][-1]
    assert last["level"] == "CRITICAL"
    assert "has no model: expected MODEL/VERSION/program.pb below it" in last["message"]


def test_text_lines_are_one_a_request(repository: Path, tmp_path: Path) -> None:
    flags = ["--access-log-sample=1", "--log-level=error"]
    with (
        WatchedServer(repository, tmp_path / "log", flags) as server,
        open_client(server.address) as client,
    ):
        infer(client, request_id="a\nb")
        assert server.stop() == 0
        (line,) = [line for line in server.log.read_text().splitlines() if "access" in line]
    assert " INFO slipway.access: request request_id=a?b method=ModelInfer model=affine " in line


def test_levels_change_through_the_protocol(
    server: WatchedServer, client: InferenceServerClient
) -> None:
    defaults = {
        "log_error": True,
        "log_warning": True,
        "log_info": True,
        "log_verbose_level": 0,
        "log_format": "text",
    }
    assert settings(client.get_log_settings()) == defaults
    refuse(client, rows=20)
    eventually(lambda: "is 20" in server.log.read_text())

    changed = client.update_log_settings({"log_info": False, "log_verbose_level": 1})
    assert settings(changed) == {**defaults, "log_info": False, "log_verbose_level": 1}
    refuse(client, rows=21)
    client.update_log_settings({"log_format": "json", "log_info": True})
    refuse(client, rows=22)
    eventually(lambda: "is 22" in server.log.read_text())
    assert "is 21" not in server.log.read_text()
    assert json.loads(server.log.read_text().splitlines()[-1])["level"] == "INFO"
    assert settings(client.update_log_settings(defaults)) == defaults


@pytest.mark.parametrize(
    ("name", "kind", "value", "status"),
    [
        ("log_info", "string_param", "yes", grpc.StatusCode.INVALID_ARGUMENT),
        ("log_verbose_level", "bool_param", True, grpc.StatusCode.INVALID_ARGUMENT),
        ("log_format", "string_param", "xml", grpc.StatusCode.INVALID_ARGUMENT),
        ("log_file", "string_param", "/etc/passwd", grpc.StatusCode.UNIMPLEMENTED),
    ],
)
def test_wrong_settings_change_nothing(
    server: WatchedServer,
    client: InferenceServerClient,
    name: str,
    kind: str,
    value: object,
    status: grpc.StatusCode,
) -> None:
    before = settings(client.get_log_settings())
    request = service_pb2.LogSettingsRequest()
    request.settings["log_error"].bool_param = False
    setattr(request.settings[name], kind, value)
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "LogSettings", request)
        assert caught.value.code() is status
        assert name in caught.value.details()
    assert settings(client.get_log_settings()) == before


def test_a_signal_turns_everything_on_and_off(
    server: WatchedServer, client: InferenceServerClient
) -> None:
    for level in (1, 0):
        server.process.send_signal(signal.SIGUSR1)
        eventually(
            lambda level=level: settings(client.get_log_settings())["log_verbose_level"] == level
        )


def settings(response: Any) -> dict[str, object]:
    """Returns the settings of a LogSettingsResponse."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in response.settings.items()
    }
