"""Files of secrets that are followed while serving: bearer tokens, and certificates for TLS.

A file that changes counts from the next call or connection on, with a second's delay at most. One
that cannot be read or is wrong changes nothing: what was read before goes on to count, the log says
why, and it is tried again. So replace a file by renaming another one over it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc

from slipway.serving.errors import StartupError

__all__ = ["CredentialError", "TlsFiles", "TokenFile"]

_LOGGER = logging.getLogger(__name__)

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")

# Of OpenSSL (X509_V_FLAG_NO_CHECK_TIME); Python has no name for it.
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)

_Content = TypeVar("_Content")


class CredentialError(StartupError):
    """A file of secrets cannot be used; the text says why, and has nothing of what is in it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=2)


class _Followed(Generic[_Content]):
    """What files say, read again when they change. Safe for several threads."""

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], _Content], check_seconds: float
    ) -> None:
        """Reads the files. Raises: what `read` raises."""
        self._paths = paths
        self._check_seconds = check_seconds
        self._read = read
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._state: list[tuple[int, int, int] | None] | None = self._look()
        self._content = read()
        self._problem = ""

    def get(self) -> _Content:
        """Returns the content, after a look at the files unless the last was just now."""
        is_due = time.monotonic() - self._looked >= self._check_seconds
        if is_due and self._lock.acquire(blocking=False):
            try:
                self._looked = time.monotonic()
                self._update()
            finally:
                self._lock.release()
        return self._content

    def _update(self) -> None:
        state = self._look()
        if state == self._state:
            return
        try:
            self._content = self._read()
        except CredentialError as error:
            # Tried again at each look: a lack of descriptors, or a right that is granted late, ends
            # without a change of the file.
            self._state = None
            problem = str(error)
            if problem != self._problem:
                _LOGGER.error("%s; what was read before goes on to count", problem)
        else:
            self._state = state
            problem = ""
            _LOGGER.info("read again: %s", ", ".join(map(str, self._paths)))
        self._problem = problem

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_state(path) for path in self._paths]


class TokenFile:
    """Bearer tokens, one on each line; `sha256:` and 64 hexadecimal digits stand for a token.

    Empty lines and those that begin with `#` are passed over.
    """

    def __init__(self, path: Path, check_seconds: float = 1.0) -> None:
        """Reads the file.

        Args:
          path: of the file.
          check_seconds: for how long after a look at it there is no other.

        Raises:
          CredentialError: it cannot be read, has a line that is no token, or has no token.
        """

        def read() -> tuple[bytes, ...]:
            digests = _read_tokens(path)
            if not digests:
                _LOGGER.warning("%s has no token: nobody is let in for one", path)
            return digests

        self._digests = _Followed([path], read, check_seconds)
        if not self._digests.get():
            raise CredentialError(f"{path} has no token: write one on a line")

    def has(self, token: str) -> bool:
        """Returns whether `token` is one of them; the time it takes does not depend on which."""
        digest = hashlib.sha256(token.encode()).digest()
        found = False
        for known in self._digests.get():
            found |= hmac.compare_digest(known, digest)
        return found


class TlsFiles:
    """A certificate, its key, and the authorities that clients' certificates come from."""

    def __init__(self, certificate: Path, key: Path, client_authorities: Path | None) -> None:
        """Reads the files.

        Args:
          certificate: PEM, the server's first, then those up to the authority's.
          key: PEM, of the first certificate.
          client_authorities: PEM; None if clients need no certificate.

        Raises:
          CredentialError: one of them cannot be read or is wrong, or they do not belong together.
        """
        self._is_mutual = client_authorities is not None
        paths = [certificate, key]
        if client_authorities is not None:
            paths.append(client_authorities)

        def read() -> tuple[grpc.ServerCertificateConfiguration, float | None]:
            return _read_tls(certificate, key, client_authorities)

        self._content = _Followed(paths, read, 0)
        self._served = self._content.get()[0]

    @property
    def expiry(self) -> float | None:
        """Returns when the first of the server's certificates expires, in seconds since 1970.

        None if it cannot be told of one that no client would take.
        """
        return self._content.get()[1]

    def credentials(self) -> grpc.ServerCredentials:
        """Returns what a port is opened with; each new connection gets the files of that moment."""
        return grpc.dynamic_ssl_server_credentials(
            self._served,
            self._fetch,  # type: ignore[arg-type]  # the stub forgets that it may return None
            require_client_authentication=self._is_mutual,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what has changed; called by gRPC before each handshake."""
        configuration, _ = self._content.get()
        if configuration is self._served:
            return None
        self._served = configuration
        return configuration


def _read_tokens(path: Path) -> tuple[bytes, ...]:
    digests = []
    for number, line in enumerate(_read(path).split(b"\n"), 1):
        text = line.strip().decode("ascii", "replace")
        if not text or text.startswith("#"):
            continue
        digest = _DIGEST.fullmatch(text)
        if digest is not None:
            digests.append(bytes.fromhex(digest[1]))
        elif _TOKEN.fullmatch(text) is not None:
            digests.append(hashlib.sha256(text.encode()).digest())
        else:
            raise CredentialError(
                f"{path}:{number}: no token: expected 16 to 512 letters, digits and any of ._~+/=-,"
                " or sha256: and 64 hexadecimal digits"
            )
    return tuple(digests)


def _read_tls(
    certificate: Path, key: Path, client_authorities: Path | None
) -> tuple[grpc.ServerCertificateConfiguration, float | None]:
    """Returns what gRPC serves, and when the first of the server's certificates expires."""
    chain, secret = _read(certificate), _read(key)
    authorities = None if client_authorities is None else _read(client_authorities)
    # gRPC takes anything, and then fails each handshake in silence.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A key with a password would ask for it at the terminal.
        context.load_cert_chain(certificate, key, password="")
        client = _client(certificate)
    except (OSError, ValueError) as error:
        raise CredentialError(
            f"{certificate} and {key} are no certificate and its key, as PEM and without a "
            f"password: {_reason(error)}"
        ) from error
    if authorities is not None:
        try:
            context.load_verify_locations(cadata=authorities.decode("ascii"))
        except (OSError, ValueError) as error:
            raise CredentialError(
                f"{client_authorities} has no certificates of authorities, as PEM: {_reason(error)}"
            ) from error
    if (chain, secret) != (_read(certificate), _read(key)):
        raise CredentialError(f"{certificate} or {key} changes while it is read")
    # It counts all the same: to go on with the one before would be no better for long.
    try:
        _accepted(client, context)
    except ssl.SSLCertVerificationError as error:
        _LOGGER.warning(
            "clients refuse the certificate in %s: %s", certificate, error.verify_message
        )
    served = grpc.ssl_server_certificate_configuration([(secret, chain)], authorities)
    return served, _expiry(client, context)


def _client(certificate: Path) -> ssl.SSLContext:
    """Returns a client that trusts a certificate."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(certificate)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return client


def _accepted(client: ssl.SSLContext, server: ssl.SSLContext) -> dict[str, Any]:
    """Returns what a client knows of the certificate that it has accepted; nothing if it failed.

    Raises:
      SSLCertVerificationError: it refuses the certificate.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for end in (*ends, ends[0]):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError:
            raise
        except ssl.SSLError:
            return {}  # what clients do then is not known
    return ends[0].getpeercert() or {}


def _expiry(client: ssl.SSLContext, server: ssl.SSLContext) -> float | None:
    """Returns when the first certificate that a client is shown expires; None if that is not known.

    Python tells it of authorities, and of a certificate that was accepted.
    """
    client.verify_flags |= _NO_CHECK_TIME
    try:
        own = _accepted(client, server)
    except ssl.SSLCertVerificationError:
        own = {}
    if "notAfter" not in own:
        return None
    return min(ssl.cert_time_to_seconds(each["notAfter"]) for each in (own, *client.get_ca_certs()))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialError(f"cannot read {path}: {error.strerror}") from error


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error).replace("_", " ").lower()


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
