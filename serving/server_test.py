"""The server in this process, at moments that a client of a process cannot bring about."""

from __future__ import annotations

import contextlib
import copy
import gc
import socket
import statistics
import struct
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
import trustme
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client.parser import text_string_to_metric_families

from slipway.program import Method
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving import transport
from slipway.serving.credentials import TlsFiles
from slipway.serving.errors import InvalidRequestError, OverloadedError, ServingError
from slipway.serving.host import Host
from slipway.serving.loader import Loader
from slipway.serving.model import Environment
from slipway.serving.processors import Processors
from slipway.serving.repository import Repository
from slipway.serving.request_queue import PendingRequest
from slipway.serving.routing import Route
from slipway.serving.scheduler import Scheduler, SchedulingOptions
from slipway.serving.server import InferenceServer
from slipway.serving.wire_call import WireCall
from slipway.tests.serving.programs import write_affine


class Running:
    """A server that listens and has not loaded its model yet."""

    def __init__(self, root: Path) -> None:
        self.device_failed = threading.Event()
        self.environment = Environment(
            SchedulingOptions(instances=3), on_device_failure=self.device_failed.set
        )
        loader = Loader(Host(Processors(1)), self.environment)
        routes = {"affine": Route(labels={"stable": 1, "next": 2})}
        self.server = InferenceServer(Repository(root, routes=routes), loader)
        self.address = self.server.start("127.0.0.1", 0)
        self.channel = grpc.insecure_channel(self.address)

    def infer(self) -> protocol.ModelInferResponse:
        return protocol.ModelInferResponse.FromString(self.call("ModelInfer", infer_request()))

    def stream(self, count: int) -> list[protocol.ModelStreamInferResponse]:
        call = self.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        messages = iter([infer_request().SerializeToString()] * count)
        return list(map(protocol.ModelStreamInferResponse.FromString, call(messages, timeout=60)))

    def is_ready(self) -> bool:
        data = self.call("ServerReady", protocol.ServerReadyRequest())
        return protocol.ServerReadyResponse.FromString(data).ready

    def is_model_ready(self, version: str) -> bool:
        data = self.call("ModelReady", protocol.ModelReadyRequest(name="affine", version=version))
        return protocol.ModelReadyResponse.FromString(data).ready

    def call(self, method: str, request: Message) -> bytes:
        path = f"/inference.GRPCInferenceService/{method}"
        response: bytes = self.channel.unary_unary(path)(request.SerializeToString(), timeout=60)
        return response

    def metric(self, name: str, labels: dict[str, str], tls: TlsFiles | None = None) -> float:
        address = self.server.start_monitoring("127.0.0.1", 0, tls)
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as response:
            families = text_string_to_metric_families(response.read().decode())
            samples = [sample for family in families for sample in family.samples]
        return sum(
            sample.value for sample in samples if (sample.name, sample.labels) == (name, labels)
        )

    def health(self, service: str) -> int:
        request = health_pb2.HealthCheckRequest(service=service)
        response = health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=60)
        return int(response.status)


def infer_request() -> protocol.ModelInferRequest:
    request = protocol.ModelInferRequest(model_name="affine", raw_input_contents=[bytes(16)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    return request


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    write_affine(tmp_path / "affine" / "1")
    running = Running(tmp_path)
    with running.channel:
        yield running
        running.server.drain(0)


def refusal(running: Running) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        running.infer()
    return caught.value.code(), caught.value.details()


def test_while_loading_it_is_unavailable_and_then_it_is_not(running: Running) -> None:
    assert not running.is_ready()
    for service in ("", "affine"):
        assert running.health(service) == health_pb2.HealthCheckResponse.NOT_SERVING
    code, text = refusal(running)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "the server is loading its models" in text

    assert running.server.load(lambda: False) == 1

    assert running.is_ready()
    for service in ("", "affine"):
        assert running.health(service) == health_pb2.HealthCheckResponse.SERVING
    assert running.infer().outputs[0].shape == [1, 3]


def test_the_metrics_tell_when_the_certificate_expires(running: Running, tmp_path: Path) -> None:
    expires = datetime(2036, 5, 6, 7, 8, 9, tzinfo=UTC)
    issued = trustme.CA().issue_cert("localhost", not_after=expires)
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    certificate.write_bytes(issued.cert_chain_pems[0].bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    name = "slipway_tls_certificate_expiry_timestamp_seconds"
    assert running.metric(name, {}) == 0
    assert running.metric(name, {}, TlsFiles(certificate, key, None)) == expires.timestamp()


def test_a_version_is_ready_by_its_label_too(running: Running) -> None:
    assert not running.is_model_ready("stable")
    running.server.load(lambda: False)
    versions = ("", "1", "stable", "2", "next", "other")
    assert [running.is_model_ready(version) for version in versions] == [True] * 3 + [False] * 3


def test_the_configuration_says_how_many_batches_run_at_the_same_time(running: Running) -> None:
    running.server.load(lambda: False)
    data = running.call("ModelConfig", protocol.ModelConfigRequest(name="affine"))
    config = protocol.ModelConfigResponse.FromString(data).config
    assert [group.count for group in config.instance_group] == [3]


def test_calls_whose_message_does_not_come_keep_nobody_waiting(running: Running) -> None:
    is_over = threading.Event()

    def nothing() -> Iterator[bytes]:
        is_over.wait(60)
        yield b""

    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    control = ["/inference.GRPCInferenceService/ServerLive", "/grpc.health.v1.Health/Check"]
    paths = [*control, "/inference.GRPCInferenceService/TraceSetting"] * 100
    calls: list[Any] = [running.channel.stream_unary(path).future(nothing()) for path in paths]
    calls += [running.channel.stream_stream(reflection)(nothing()) for _ in range(100)]
    try:
        time.sleep(0.5)
        for _ in range(3):
            assert running.health("") == health_pb2.HealthCheckResponse.NOT_SERVING
            assert not running.is_ready()
    finally:
        is_over.set()
        for call in calls:
            call.cancel()


def test_a_message_that_does_not_come_does_not_hold_up_the_end(running: Running) -> None:
    running.server.load(lambda: False)
    is_over = threading.Event()

    def nothing() -> Iterator[bytes]:
        is_over.wait(60)
        yield b""

    infer = "/inference.GRPCInferenceService/ModelInfer"
    paths = [infer, "/inference.GRPCInferenceService/ServerLive", "/grpc.health.v1.Health/Watch"]
    calls = [running.channel.stream_stream(path)(nothing(), timeout=120) for path in paths]
    assert running.infer().outputs  # they have arrived by now
    started = time.monotonic()
    assert running.server.drain(60)
    assert time.monotonic() - started < 30
    is_over.set()
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the message has not come" in caught.value.details()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Returns a frame of HTTP/2, https://www.rfc-editor.org/rfc/rfc9113#section-4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


@contextlib.contextmanager
def calls_without_reading(
    address: str, path: str, message: bytes, count: int = 1, name: str = "test"
) -> Iterator[None]:
    """Makes calls of a connection that allows no byte of an answer; they have arrived then.

    Args:
      address: of the server.
      path: of the method.
      message: the request's bytes.
      count: of the calls.
      name: what they have as metadata, in Latin-1.
    """
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "te": "trailers",
        "content-type": "application/grpc",
        "x-name": name,
    }
    block = b"".join(
        b"\0" + bytes([len(key)]) + key.encode() + bytes([len(value)]) + value.encode("latin-1")
        for key, value in headers.items()
    )
    initial_window_size = struct.pack(">HI", 4, 0)
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, initial_window_size)
    for stream in range(1, 2 * count, 2):
        sent += frame(1, 4, stream, block)  # HEADERS, END_HEADERS
        sent += frame(0, 1, stream, struct.pack(">BI", 0, len(message)) + message)  # END_STREAM
    sent += frame(6, 0, 0, bytes(8))  # PING
    host, port = address.split(":")
    have_arrived = threading.Event()
    with socket.create_connection((host, int(port))) as connection:
        threading.Thread(
            target=acknowledge_pings, args=[connection, have_arrived], daemon=True
        ).start()
        connection.sendall(sent)
        have_arrived.wait(60)
        yield
        connection.shutdown(socket.SHUT_RDWR)


def acknowledge_pings(connection: socket.socket, is_acknowledged: threading.Event) -> None:
    """Answers the frames that ask whether a connection is alive, and no others.

    Args:
      connection: with the server.
      is_acknowledged: set when the server has answered one.
    """
    with contextlib.suppress(OSError), connection.makefile("rb") as received:
        while head := received.read(9):
            payload = received.read(int.from_bytes(head[:3], "big"))
            if head[3:5] == b"\6\0":  # PING, no ACK
                connection.sendall(frame(6, 1, 0, payload))
            elif head[3:5] == b"\6\1":
                is_acknowledged.set()


def test_a_watch_that_nobody_reads_keeps_nobody_waiting(running: Running) -> None:
    started = time.monotonic()
    with calls_without_reading(running.address, "/grpc.health.v1.Health/Watch", b""):
        time.sleep(0.5)
        assert running.health("") == health_pb2.HealthCheckResponse.NOT_SERVING
        running.server.load(lambda: False)
        assert running.health("") == health_pb2.HealthCheckResponse.SERVING
        assert running.server.drain(60)
        assert time.monotonic() - started < 30


def test_a_connection_that_has_fallen_silent_does_not_hold_up_the_end(running: Running) -> None:
    running.server.load(lambda: False)
    host, port = running.address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        assert connection.recv(9)  # it has been accepted
        started = time.monotonic()
        assert running.server.drain(60)
        assert time.monotonic() - started < 15  # gRPC would give up after 20


def test_a_server_that_nobody_has_called_ends_at_once(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.server.load(lambda: False)
    monkeypatch.setattr(transport, "_TAKE_IN_SECONDS", 60.0)
    started = time.monotonic()
    assert running.server.drain(60)
    assert time.monotonic() - started < 30


def test_calls_that_have_arrived_are_taken_in_before_the_server_stops(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.server.load(lambda: False)
    taken, may_go_on, original = [], threading.Event(), Scheduler.submit

    def submit(self: Scheduler, pending: PendingRequest) -> None:
        taken.append(pending)
        assert may_go_on.wait(60)  # in the thread that receives
        original(self, pending)

    monkeypatch.setattr(Scheduler, "submit", submit)
    message = infer_request().SerializeToString()
    path = "/inference.GRPCInferenceService/ModelInfer"
    with ThreadPoolExecutor() as pool:
        first = pool.submit(running.infer)
        await_condition(lambda: len(taken) == 1)
        with calls_without_reading(running.address, path, message, 20):
            drained = pool.submit(running.server.drain, 60)
            time.sleep(0.1)
            may_go_on.set()
            await_condition(lambda: len(taken) == 21)
        assert first.result().outputs
        assert drained.result()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_answers_that_nobody_reads_count_as_memory_of_requests(
    running: Running, method: str
) -> None:
    running.server.load(lambda: False)
    memory, message = running.environment.memory, infer_request().SerializeToString()
    running.infer()
    running.stream(3)
    await_condition(lambda: not memory.used)
    path = f"/inference.GRPCInferenceService/{method}"
    with calls_without_reading(running.address, path, message, 20):
        await_condition(lambda: memory.used >= 20 * len(b"affine"))
        memory.add(memory.limit - memory.used)
        code, text = refusal(running)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "bytes of requests and of answers that were not read" in text
    await_condition(lambda: memory.used < memory.limit)
    running.infer()


def test_an_answer_whose_client_has_gone_takes_no_memory(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, runs, is_gone = Method.run, threading.Event(), threading.Event()

    def run(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        runs.set()
        assert is_gone.wait(30)
        return original(self, tensors)

    running.server.load(lambda: False)
    monkeypatch.setattr(Method, "run", run)
    path = "/inference.GRPCInferenceService/ModelInfer"
    call = running.channel.unary_unary(path).future(infer_request().SerializeToString())
    assert runs.wait(30)
    call.cancel()
    await_condition(
        lambda: any(type(item) is WireCall and item.cancelled for item in gc.get_objects())
    )
    is_gone.set()
    await_condition(lambda: not running.environment.memory.used)


def test_metadata_that_is_no_text_fills_no_log(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.server.load(lambda: False)
    memory, message = running.environment.memory, infer_request().SerializeToString()
    path = "/inference.GRPCInferenceService/ModelInfer"
    with calls_without_reading(running.address, path, message, name="\xff"):
        await_condition(lambda: memory.used > 0)
    assert not [record for record in caplog.records if record.exc_info]


def test_health_lists_the_server_and_its_models(running: Running) -> None:
    running.server.load(lambda: False)
    stub = health_pb2_grpc.HealthStub(running.channel)
    listed = stub.List(health_pb2.HealthListRequest(), timeout=60).statuses
    serving = health_pb2.HealthCheckResponse.SERVING
    assert {name: response.status for name, response in listed.items()} == {
        "": serving,
        "affine": serving,
    }


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_bytes_that_are_no_health_request_are_the_callers_mistake(
    running: Running, method: str
) -> None:
    call = running.channel.unary_stream(f"/grpc.health.v1.Health/{method}")(b"\xff", timeout=60)
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (
        "the message received, 1 byte, is no grpc.health.v1.HealthCheckRequest"
        in caught.value.details()
    )


def test_a_call_without_a_message_is_the_callers_mistake(running: Running) -> None:
    infer = running.channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        infer(iter([]), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "ModelInfer needs one request message, and got none" in caught.value.details()


def test_a_tool_that_is_open_does_not_hold_up_the_end(running: Running) -> None:
    running.server.load(lambda: False)
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    is_over = threading.Event()

    def ask() -> Iterator[bytes]:
        yield reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        is_over.wait(60)

    stream = running.channel.stream_stream(path)(ask(), timeout=120)
    answer = reflection_pb2.ServerReflectionResponse.FromString(next(stream))
    names = {service.name for service in answer.list_services_response.service}
    assert "inference.GRPCInferenceService" in names
    started = time.monotonic()
    assert running.server.drain(60)
    assert time.monotonic() - started < 30
    is_over.set()
    with pytest.raises(grpc.RpcError):
        next(stream)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        raise copy.copy(error)  # each has a traceback of its own

    monkeypatch.setattr(Method, "run", run)


@pytest.mark.parametrize("error", [RuntimeError("secret"), AttributeError("secret"), KeyError(1)])
def test_a_failure_of_ours_is_internal_and_told_to_the_log_only(
    running: Running,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    running.server.load(lambda: False)
    with monkeypatch.context() as patch:
        fail_with(patch, error)
        code, text = refusal(running)
    assert code is grpc.StatusCode.INTERNAL
    assert "the server's log has the cause" in text
    assert "secret" not in text
    assert any(record.exc_info for record in caplog.records)
    assert running.infer().outputs
    assert not running.device_failed.is_set()


def test_a_failure_to_take_a_request_on_is_internal_too(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.server.load(lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "submit", lambda *_: 1 / 0)
        request = infer_request().SerializeToString()
        path = "/inference.GRPCInferenceService/ModelInfer"
        with pytest.raises(grpc.RpcError) as caught:
            running.channel.unary_unary(path)(request, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert running.infer().outputs


def test_a_device_that_fails_is_reported_to_whoever_runs_the_server(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.server.load(lambda: False)
    fail_with(monkeypatch, torch.AcceleratorError("CUDA error: an illegal memory access"))
    code, text = refusal(running)
    assert code is grpc.StatusCode.INTERNAL
    assert "cpu is in error, and the server stops" in text
    assert running.device_failed.wait(60)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def await_condition(is_met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def await_no_request() -> None:
    """Waits until no request is left in memory."""
    deadline = time.monotonic() + 30
    while any(type(item) is PendingRequest for item in gc.get_objects()):
        assert time.monotonic() < deadline, "requests are kept after they were answered"
        time.sleep(0.01)


@pytest.mark.usefixtures("no_collector")
def test_an_answered_request_is_freed_at_once(running: Running) -> None:
    running.server.load(lambda: False)
    for _ in range(5):
        running.infer()
    await_no_request()
    assert len(running.stream(5)) == 5
    await_no_request()


@pytest.mark.usefixtures("no_collector")
def test_a_watch_that_has_gone_is_freed_at_once(running: Running) -> None:
    running.server.load(lambda: False)
    watch = running.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)
    assert next(watch)
    watch.cancel()
    await_condition(lambda: not any(type(item) is WireCall for item in gc.get_objects()))


@pytest.mark.usefixtures("no_collector")
def test_a_request_that_fails_is_freed_at_once(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.server.load(lambda: False)
    # What is logged with its traceback stays with the test's log.
    fail_with(monkeypatch, IndexError("index out of range in self"))
    for _ in range(5):
        assert refusal(running)[0] is grpc.StatusCode.INVALID_ARGUMENT
    await_no_request()
    assert len(running.stream(5)) == 5
    await_no_request()


def test_the_collector_passes_over_what_is_loaded_at_the_start(running: Running) -> None:
    running.server.load(lambda: False)
    assert gc.get_freeze_count() > 10_000
    gc.unfreeze()


@pytest.mark.parametrize("size", [0, 2**20], ids=["small", "read by another thread"])
def test_whoever_receives_rests_for_less_after_a_refusal(
    running: Running, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    running.server.load(lambda: False)
    arrivals = running.environment.arrivals
    arrivals.begin()  # as if the only processor ran a batch

    def usual_rest() -> float:
        rests = []
        for _ in range(20):
            started = time.monotonic()
            arrivals.rest()
            rests.append(time.monotonic() - started)
        return statistics.median(rests)

    assert usual_rest() > 1.9e-3

    def refuse_with(error: ServingError) -> grpc.StatusCode:
        def submit(self: Scheduler, pending: PendingRequest) -> None:
            raise error

        monkeypatch.setattr(Scheduler, "submit", submit)
        request = infer_request()
        request.id = "i" * size
        with pytest.raises(grpc.RpcError) as caught:
            running.call("ModelInfer", request)
        return caught.value.code()

    # What is refused for another reason says nothing of how much there is to do.
    assert refuse_with(InvalidRequestError("wrong")) is grpc.StatusCode.INVALID_ARGUMENT
    assert usual_rest() > 1.9e-3
    overload = OverloadedError("too much", retry_after=0.1)
    assert refuse_with(overload) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert usual_rest() < 1.9e-3
    arrivals.end()


def test_whoever_ends_a_batch_finds_what_came_while_all_processors_ran_one(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.server.load(lambda: False)
    receivers: list[threading.Thread] = []
    submit = Scheduler.submit

    def noting_submit(self: Scheduler, pending: PendingRequest) -> None:
        receivers.append(threading.current_thread())
        submit(self, pending)

    monkeypatch.setattr(Scheduler, "submit", noting_submit)
    call = running.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    message = infer_request().SerializeToString()
    arrivals = running.environment.arrivals
    arrivals.begin()  # as if the only processor ran a batch
    # Where processors are busy, the receiving thread comes first now and then.
    for _ in range(100):
        if receivers.count(threading.current_thread()) > 10:
            break
        time.sleep(0.01)  # The receiving thread is not to wait for what comes, with the turn.
        answer = call.future(message, timeout=60)
        while not answer.done():
            arrivals.take_in()
        assert protocol.ModelInferResponse.FromString(answer.result()).outputs[0].shape == [1, 3]
    arrivals.end()
    assert receivers.count(threading.current_thread()) > 10


def test_who_asks_for_too_much_is_not_read_while_others_wait(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.server.load(lambda: False)

    def submit(self: Scheduler, pending: PendingRequest) -> None:
        if pending.request.identifier == b"modest":
            raise InvalidRequestError("read")
        time.sleep(2e-3)  # so that calls come faster than they are read
        raise OverloadedError("too much", retry_after=0.1)

    monkeypatch.setattr(Scheduler, "submit", submit)
    path = "/inference.GRPCInferenceService/ModelInfer"
    greedy, is_over = running.channel.unary_unary(path), threading.Event()
    found: Counter[str] = Counter()

    def ask_for_too_much() -> None:
        message = infer_request().SerializeToString()
        while not is_over.is_set():
            for call in [greedy.future(message, timeout=60) for _ in range(100)]:
                error = call.exception()
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
                found[error.details()] += 1

    modest = infer_request()
    modest.id = "modest"
    # Callers are told apart by their connections, and what they ask for by how urgent it is.
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(running.address, options) as other, ThreadPoolExecutor() as pool:
        flood = pool.submit(ask_for_too_much)
        try:
            for ask, timeout in [(other.unary_unary(path), 60), (greedy, 600)] * 100:
                with pytest.raises(grpc.RpcError) as error:
                    ask(modest.SerializeToString(), timeout=timeout)
                assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        finally:
            is_over.set()
        flood.result()
    read, unread = found.pop("too much"), found.popitem()
    assert not found
    assert "was not read" in unread[0] and unread[1] > read
    kind = {"model": "", "version": "", "kind": "RESOURCE_EXHAUSTED"}
    assert running.metric("slipway_refusals_total", kind) == unread[1]


def test_a_timeout_that_is_too_short_keeps_no_other_call_of_its_client_from_being_read(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.server.load(lambda: False)
    for _ in range(3):
        running.infer()  # so that it is known how long one takes
    entered, go_on, submit = threading.Semaphore(0), threading.Event(), Scheduler.submit
    original = Method.run

    def run(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        entered.release()
        assert go_on.wait(60)
        return original(self, tensors)

    def submit_slowly(self: Scheduler, pending: PendingRequest) -> None:
        time.sleep(2e-3)  # so that calls come faster than they are read
        submit(self, pending)

    monkeypatch.setattr(Method, "run", run)
    monkeypatch.setattr(Scheduler, "submit", submit_slowly)
    infer = running.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    message = infer_request().SerializeToString()
    busy = []
    for _ in range(running.environment.options.instances):
        busy.append(infer.future(message, timeout=60))
        assert entered.acquire(timeout=60)
    busy.append(infer.future(message, timeout=60))  # waits
    hasty = infer_request()
    hasty.parameters["timeout"].int64_param = 1
    refused = [infer.future(hasty.SerializeToString(), timeout=60) for _ in range(200)]
    try:
        for call in refused:
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "would not answer this request before its deadline" in call.details()
    finally:
        go_on.set()
    for call in busy:
        assert call.result()
