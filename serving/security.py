"""From the settings to who may do what, and to TLS."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from slipway.serving.authorization import Access, Authorizer
from slipway.serving.configuration import Configuration, SecuritySettings
from slipway.serving.credentials import TlsFiles, TokenFile

__all__ = ["Security", "doubts", "tls_files"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Security:
    """What guards the port.

    Attributes:
      authorizer: who may call which method.
      tls: what TLS is made of; None to go without.
    """

    authorizer: Authorizer
    tls: TlsFiles | None

    @property
    def credentials(self) -> grpc.ServerCredentials | None:
        """Returns what to open the port with; None without TLS."""
        return None if self.tls is None else self.tls.credentials()

    @classmethod
    def of(cls, configuration: Configuration) -> Security:
        """Returns what the settings ask for, and warns of what is hardly meant.

        Raises:
          CredentialError: one of the files cannot be used.
        """
        settings = configuration.security
        tls = tls_files(settings)
        authorizer = Authorizer(
            _access(settings.inference_tokens, settings.inference_identities),
            _access(
                settings.control_tokens,
                settings.control_identities,
                from_loopback=settings.control_from_loopback,
            ),
        )
        for doubt in doubts(settings):
            _LOGGER.warning("%s", doubt)
        return cls(authorizer, tls)


def tls_files(settings: SecuritySettings) -> TlsFiles | None:
    """Returns what TLS is made of; None to go without. Raises: CredentialError."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    authorities = settings.tls_client_ca
    return TlsFiles(
        Path(settings.tls_certificate),
        Path(settings.tls_key),
        None if authorities is None else Path(authorities),
    )


def doubts(settings: SecuritySettings) -> list[str]:
    """Returns what is allowed, and hardly meant."""
    found = []
    has_tokens = settings.inference_tokens or settings.control_tokens
    if has_tokens and settings.tls_certificate is None:
        found.append("without TLS, whoever can read the network can read the tokens")
    if os.geteuid() == 0:
        found.append("the server runs as root, and needs no such right: give it a user of its own")
    return found


def _access(
    tokens: str | None, identities: Sequence[str], *, from_loopback: bool = False
) -> Access:
    has_token = None if tokens is None else TokenFile(Path(tokens)).has
    return Access(has_token, frozenset(identities), from_loopback)
