"""TLS and mutual TLS."""

from __future__ import annotations

import signal
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from slipway.tests.security.authority import Authority, replace
from slipway.tests.security.conftest import Outcome
from slipway.tests.serving.requests import call, infer_request, zeros
from slipway.tests.serving.server_process import ServerProcess

OPERATOR = "operator@example.org"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def mutual(
    repository: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server that clients need a certificate for, and the operator's to control it."""
    directory = tmp_path_factory.mktemp("tls")
    (directory / "clients.pem").write_bytes(authority.certificate)
    flags = [
        *authority.write_server_files(directory),
        f"--tls-client-ca={directory / 'clients.pem'}",
        f"--control-identities={OPERATOR}",
        "--model-control=explicit",
        "--load-model=affine",
    ]
    with ServerProcess(repository, flags) as server:
        yield server


def test_names_in_certificates_decide_who_controls(
    mutual: ServerProcess, authority: Authority, outcome: Outcome
) -> None:
    with grpc.secure_channel(
        mutual.address, authority.client_credentials("someone@example.org")
    ) as channel:
        assert outcome(channel, "ModelInfer") == "OK"
        assert outcome(channel, "RepositoryModelLoad") == "PERMISSION_DENIED"
    with grpc.secure_channel(mutual.address, authority.client_credentials(OPERATOR)) as channel:
        assert outcome(channel, "ModelInfer") == "OK"
        # It may, and the request has no name.
        assert outcome(channel, "RepositoryModelLoad") == "INVALID_ARGUMENT"


def test_clients_without_a_certificate_that_counts_get_no_connection(
    mutual: ServerProcess, authority: Authority, outcome: Outcome
) -> None:
    others = authority.client_credentials(OPERATOR, signed_by=Authority())
    none = grpc.ssl_channel_credentials(authority.certificate)
    for credentials in (others, none):
        with grpc.secure_channel(mutual.address, credentials) as channel:
            assert outcome(channel, "ServerLive") == "UNAVAILABLE"
    with grpc.insecure_channel(mutual.address) as channel:
        assert outcome(channel, "ServerLive") == "UNAVAILABLE"


def test_a_client_that_does_not_trust_the_server_does_not_call_it(
    mutual: ServerProcess, outcome: Outcome
) -> None:
    stranger = Authority()
    with grpc.secure_channel(mutual.address, stranger.client_credentials(OPERATOR)) as channel:
        assert outcome(channel, "ServerLive") == "UNAVAILABLE"


def served_certificate(address: str) -> str:
    host, port = address.rsplit(":", 1)
    return ssl.get_server_certificate((host, int(port)))


def test_certificates_are_replaced_under_load(repository: Path, tmp_path: Path) -> None:
    old, new = Authority(), Authority()
    both = grpc.ssl_channel_credentials(old.certificate + new.certificate)
    request = infer_request("affine", x=zeros("FP32", [1, 4]))
    failures: list[grpc.RpcError] = []
    answered = [0, 0]
    stop = threading.Event()

    with ServerProcess(repository, old.write_server_files(tmp_path)) as server:

        def on_one_connection() -> None:
            with grpc.secure_channel(server.address, both) as channel:
                while not stop.is_set():
                    infer(channel, 0)

        def on_new_connections() -> None:
            # Channels of one kind would share a connection.
            options = [("grpc.use_local_subchannel_pool", 1)]
            while not stop.is_set():
                with grpc.secure_channel(server.address, both, options) as channel:
                    infer(channel, 1)

        def infer(channel: grpc.Channel, index: int) -> None:
            try:
                call(channel, "ModelInfer", request)
                answered[index] += 1
            except grpc.RpcError as error:
                failures.append(error)

        threads = [threading.Thread(target=on_one_connection)]
        threads += [threading.Thread(target=on_new_connections) for _ in range(2)]
        first = served_certificate(server.address)
        for thread in threads:
            thread.start()
        try:
            for change in range(10):
                (new if change % 2 == 0 else old).write_server_files(tmp_path)
                replaced = served_certificate(server.address)
                assert replaced in (tmp_path / "server.pem").read_text()
            # What is no certificate, or no longer there, changes nothing.
            replace(tmp_path / "server.pem", b"nothing")
            assert served_certificate(server.address) == replaced
            (tmp_path / "server.key").unlink()
            assert served_certificate(server.address) == replaced
            new.write_server_files(tmp_path)
            last = served_certificate(server.address)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert min(answered) > 0
        assert len({first, replaced, last}) == 3
        # Who trusts only the authority of before is told apart from now on.
        with grpc.secure_channel(
            server.address, grpc.ssl_channel_credentials(old.certificate)
        ) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                call(channel, "ServerLive", service_pb2.ServerLiveRequest())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
