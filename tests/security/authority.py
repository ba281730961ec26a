"""Certificates for one test, made by authorities that live as long as it does."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import trustme

TOKEN = "a-token-of-this-test"


class Authority:
    """Signs certificates.

    Attributes:
      certificate: its own, as PEM.
    """

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self.certificate = self._authority.cert_pem.bytes()

    def write_server_files(self, directory: Path) -> list[str]:
        """Writes a new certificate and its key, by renaming, and returns the flags."""
        issued = self._authority.issue_cert("localhost", "127.0.0.1")
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        replace(directory / "server.pem", chain)
        replace(directory / "server.key", issued.private_key_pem.bytes())
        return [
            f"--tls-certificate={directory / 'server.pem'}",
            f"--tls-key={directory / 'server.key'}",
        ]

    def client_credentials(
        self, identity: str, signed_by: Authority | None = None
    ) -> grpc.ChannelCredentials:
        """Returns what makes a client known as `identity`, to a server that this one signed for."""
        issued = (signed_by or self)._authority.issue_cert(identity)
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        return grpc.ssl_channel_credentials(self.certificate, issued.private_key_pem.bytes(), chain)


def replace(path: Path, content: bytes) -> None:
    """Gives a file other content, all of it at once."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    os.replace(new, path)
