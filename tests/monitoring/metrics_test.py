"""The metrics page and the probes of a server process, read as Prometheus and a kubelet do."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import subprocess
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from runfiles import Runfiles
from tritonclient.grpc import InferenceServerClient

from slipway.tests.monitoring.traffic import eventually, get, infer, refuse
from slipway.tests.monitoring.watched_server import WatchedServer
from slipway.tests.serving.programs import write_affine
from slipway.tests.serving.server_process import server_command, server_environment

AFFINE = {"model": "affine", "version": "1"}


class Scrape:
    """The samples of a metrics page, less those of an earlier one."""

    def __init__(self, server: WatchedServer, earlier: Scrape | None = None) -> None:
        self._earlier = earlier
        page, _ = get(server.monitoring + "/metrics")
        self.samples = [
            sample for family in text_string_to_metric_families(page) for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float:
        """Returns the one sample with this name and these labels; 0 if there is none."""
        found = [item.value for item in self.samples if item[:2] == (name, labels)]
        assert len(found) <= 1
        value = found[0] if found else 0.0
        return value if self._earlier is None else value - self._earlier.value(name, **labels)

    def labels(self, name: str) -> dict[str, str]:
        """Returns the labels of the one sample with this name."""
        (found,) = [item.labels for item in self.samples if item.name == name]
        return found


def test_requests_are_counted_by_how_they_ended(
    server: WatchedServer, client: InferenceServerClient
) -> None:
    before = Scrape(server)
    for _ in range(5):
        infer(client, rows=2)
    assert "INVALID_ARGUMENT" in refuse(client, rows=20)
    assert "INVALID_ARGUMENT" in refuse(client, rows=9, width=5)
    assert "NOT_FOUND" in refuse(client, model="nothing")
    answered = ("slipway_requests_total", {"code": "OK", **AFFINE})
    eventually(lambda: Scrape(server, before).value(answered[0], **answered[1]) == 5)

    scrape = Scrape(server, before)
    assert scrape.value("slipway_requests_total", code="INVALID_ARGUMENT", **AFFINE) == 2
    nobody = {"model": "", "version": ""}
    assert scrape.value("slipway_requests_total", code="NOT_FOUND", **nobody) == 1
    # The second of them broke two clauses.
    assert scrape.value("slipway_refusals_total", kind="RANGE", **AFFINE) == 2
    assert scrape.value("slipway_refusals_total", kind="STATIC_SIZE", **AFFINE) == 1
    assert scrape.value("slipway_refusals_total", kind="NOT_FOUND", **nobody) == 1

    duration = "slipway_request_duration_seconds"
    sums = {}
    for stage in ("queue", "input", "compute", "output", "total"):
        assert scrape.value(f"{duration}_count", stage=stage, **AFFINE) == 5
        assert scrape.value(f"{duration}_bucket", stage=stage, le="+Inf", **AFFINE) == 5
        sums[stage] = scrape.value(f"{duration}_sum", stage=stage, **AFFINE)
    total = sums.pop("total")
    assert total == pytest.approx(sum(sums.values()), rel=1e-6)
    assert scrape.value("slipway_batch_rows_sum", **AFFINE) == 10
    assert scrape.value("slipway_queue_requests", **AFFINE) == 0
    assert scrape.value("slipway_queue_bytes", **AFFINE) == 0


def test_what_runs_is_named(server: WatchedServer, client: InferenceServerClient) -> None:
    answer = infer(client, parameters={"slipway_return_program_digest": True}).get_response()
    digest = answer.parameters["slipway_program_digest"].string_param
    scrape = Scrape(server)
    program = {"digest": digest, "device": "cpu", "execution": "graph"}
    assert scrape.labels("slipway_program_info") == {**AFFINE, **program}
    assert scrape.labels("slipway_build_info").keys() == {"version", "torch", "python"}
    assert scrape.value("slipway_ready") == 1
    assert scrape.value("slipway_model_load_seconds", **AFFINE) > 0
    assert scrape.value("slipway_model_loads_total", model="affine", outcome="success") == 1
    assert scrape.value("slipway_model_loads_total", model="affine", outcome="failure") == 1
    broken = {"model": "affine", "version": "2", "state": "UNAVAILABLE"}
    assert scrape.value("slipway_model_version_state", **broken) == 1
    resident = scrape.value("slipway_device_memory_allocated_bytes", device="cpu")
    assert resident > 2**20
    assert scrape.value("slipway_device_memory_available_bytes", device="cpu") not in (0, resident)
    assert scrape.value("process_start_time_seconds") > 0
    assert scrape.value("slipway_request_memory_limit_bytes") > 0
    eventually(lambda: Scrape(server).value("slipway_request_memory_bytes") == 0)


def test_clients_cannot_make_time_series(
    server: WatchedServer, client: InferenceServerClient
) -> None:
    refuse(client, model="nothing")
    refuse(client, model_version="7")
    before = {(item.name, *sorted(item.labels.items())) for item in Scrape(server).samples}
    for index in range(20):
        refuse(client, model=f'made"up{index}\n')
        refuse(client, model_version=str(1000 + index))
        with pytest.raises(Exception, match="NOT_FOUND"):
            client.get_model_metadata(f"unknown{index}")
    after = {(item.name, *sorted(item.labels.items())) for item in Scrape(server).samples}
    assert after == before


def test_a_stream_is_counted_while_it_is_open(
    server: WatchedServer, client: InferenceServerClient
) -> None:
    client.start_stream(lambda result, error: None, stream_timeout=20)
    try:
        eventually(lambda: Scrape(server).value("slipway_streams") == 1)
    finally:
        client.stop_stream()
    eventually(lambda: Scrape(server).value("slipway_streams") == 0)


def test_every_metric_is_documented(server: WatchedServer) -> None:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    location = runfiles.Rlocation("slipway/docs/metrics.md")
    assert location is not None
    listed = set(re.findall(r"`(slipway_\w+)`", Path(location).read_text()))
    page, _ = get(server.monitoring + "/metrics")
    assert set(re.findall(r"^# TYPE (slipway_\w+) ", page, re.MULTILINE)) == listed


def test_openmetrics_is_written_where_it_is_asked_for(server: WatchedServer) -> None:
    accept = "application/openmetrics-text; version=1.0.0"
    page, headers = get(server.monitoring + "/metrics", {"Accept": accept})
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics.text_string_to_metric_families(page)}
    assert {"slipway_requests", "slipway_program", "slipway_request_duration_seconds"} <= names


def test_versions_that_are_none_get_the_page_all_the_same(server: WatchedServer) -> None:
    for accept in ("application/openmetrics-text; version=new", "text/plain; version=x.y"):
        page, headers = get(server.monitoring + "/metrics", {"Accept": accept})
        assert headers["Content-Type"].startswith("text/plain")
        assert "slipway_ready 1.0" in page


def test_probes_and_strange_requests(server: WatchedServer) -> None:
    assert get(server.monitoring + "/livez")[0] == "live\n"
    assert get(server.monitoring + "/readyz")[0] == "ready\n"
    connection = http.client.HTTPConnection(urlsplit(server.monitoring).netloc, timeout=60)
    for method, path, status in (
        ("GET", "/../../etc/passwd", 404),
        ("POST", "/metrics", 501),
        ("HEAD", "/metrics", 200),
    ):
        connection.request(method, path)
        response = connection.getresponse()
        assert (response.status, response.read() == b"") == (status, method == "HEAD")
        connection.close()


def test_what_alerts_count_is_0_before_it_happens(tmp_path: Path) -> None:
    write_affine(tmp_path / "repository" / "affine" / "1")
    with WatchedServer(tmp_path / "repository", tmp_path / "log") as server:
        samples = Scrape(server).samples
        zeros = [
            ("slipway_model_loads_total", {"model": "affine", "outcome": "failure"}),
            *(
                ("slipway_requests_total", {**AFFINE, "code": code})
                for code in ("OK", "INTERNAL", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
            ),
        ]
        for name, labels in zeros:
            assert [item.value for item in samples if item[:2] == (name, labels)] == [0.0]


def test_a_model_that_cannot_be_served_makes_it_not_ready(tmp_path: Path) -> None:
    write_affine(tmp_path / "repository" / "affine" / "1")
    (tmp_path / "repository" / "broken" / "1").mkdir(parents=True)
    (tmp_path / "repository" / "broken" / "1" / "program.pb").write_bytes(b"\xff")
    with WatchedServer(tmp_path / "repository", tmp_path / "log") as server:
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(server.monitoring + "/readyz")
        assert get(server.monitoring + "/livez")[0] == "live\n"
        assert Scrape(server).value("slipway_ready") == 0


@pytest.fixture
def lingering(server: WatchedServer) -> Iterator[None]:
    """More clients than there may be connections, which say nothing, or not enough."""
    host, port = urlsplit(server.monitoring).netloc.split(":")
    with contextlib.ExitStack() as stack:
        for index in range(60):
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            client.sendall(b"GET /metrics HTTP/1.1\r\n"[: index % 30])
        yield


@pytest.mark.usefixtures("lingering")
def test_clients_that_say_nothing_hold_up_nobody(server: WatchedServer) -> None:
    for _ in range(3):
        assert "slipway_ready 1.0" in get(server.monitoring + "/metrics")[0]


def test_it_can_be_turned_off(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with WatchedServer(repository, log, ["--no-metrics"]) as server:
        assert server.stop() == 0
    assert "http://" not in log.read_text()


def test_a_port_that_is_taken_is_an_error(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            server_command(f"--repository={repository}", "--port=0", f"--metrics-port={port}"),
            env=server_environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port} for metrics: Address already in use" in result.stderr
