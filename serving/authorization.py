"""Who may call which method.

| methods | who may call them |
|---|---|
| health, ServerLive, ServerReady, ModelReady | everyone: an orchestrator has no credential |
| those that change the server, or show what other clients share (`CONTROL_METHODS`) | a token or a certificate for control; where none is configured, clients on the server's own host |
| everything else, reflection included | a token or a certificate for inference; where none is configured, everyone |

A caller without what it needs is answered UNAUTHENTICATED if it showed nothing, and else
PERMISSION_DENIED, in the same words whatever the reason: they say nothing of what would do.
"""  # noqa: E501

from __future__ import annotations

import ipaddress
import urllib.parse
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from slipway.serving.errors import PermissionDeniedError, UnauthenticatedError

__all__ = ["CONTROL_METHODS", "Access", "Authorizer", "Caller", "is_loopback"]

_PROTOCOL = "/inference.GRPCInferenceService/"

CONTROL_METHODS = frozenset(
    _PROTOCOL + name
    for name in (
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "LogSettings",
        "TraceSetting",
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
    )
)
"""What changes the server for everyone, as `/SERVICE/METHOD`."""

_OPEN_METHODS = frozenset(
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        _PROTOCOL + "ServerLive",
        _PROTOCOL + "ServerReady",
        _PROTOCOL + "ModelReady",
    ]
)

_BEARER = "bearer "


class Caller(Protocol):
    """Who calls. Nothing of it is computed unless it is asked for."""

    @property
    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """Returns what came beside the message, as pairs of a name in lower case and a value."""

    def peer(self) -> str:
        """Returns the address, as gRPC writes it: `ipv4:127.0.0.1:1234`."""

    def identities(self) -> Collection[str]:
        """Returns the names in the client's certificate; none if there was no certificate."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a caller needs for methods of one kind; one of the two is enough.

    Attributes:
      has_token: whether a token is one of those; None if there are no tokens.
      identities: names in certificates.
      from_loopback: whether it is enough to be on the server's own host, where there are neither
        tokens nor identities.
    """

    has_token: Callable[[str], bool] | None = None
    identities: frozenset[str] = frozenset()
    from_loopback: bool = False


class Authorizer:
    """Decides on calls. Safe for several threads, and never waits."""

    def __init__(
        self,
        inference: Access = Access(),
        control: Access = Access(from_loopback=True),
    ) -> None:
        """Makes one; without arguments it lets all in, to control those on the server's host.

        Args:
          inference: for whatever is not control, and not open to everyone.
          control: for `CONTROL_METHODS`; without tokens, identities and `from_loopback`, nobody.
        """
        self._inference = None
        if inference.has_token is not None or inference.identities or inference.from_loopback:
            self._inference = inference
        self._control = control

    def check(self, method: str, caller: Caller) -> None:
        """Returns if `caller` may call `method`, given as `/SERVICE/METHOD`.

        Raises:
          UnauthenticatedError: it must show who it is.
          PermissionDeniedError: it may not.
        """
        if method in CONTROL_METHODS:
            self._require(self._control, caller)
        elif self._inference is not None and method not in _OPEN_METHODS:
            self._require(self._inference, caller)

    def _require(self, access: Access, caller: Caller) -> None:
        if access.identities and not access.identities.isdisjoint(caller.identities()):
            return
        if access.has_token is not None:
            tokens = list(_bearer_tokens(caller.metadata))
            if len(tokens) == 1 and access.has_token(tokens[0]):
                return
            if not tokens:
                raise UnauthenticatedError(
                    "this method needs a credential: send 'authorization: Bearer TOKEN' as metadata"
                )
        elif not access.identities and access.from_loopback and is_loopback(caller.peer()):
            return
        raise PermissionDeniedError("this caller may not call this method")


def is_loopback(peer: str) -> bool:
    """Returns whether an address, as gRPC writes it, is on this host.

    That is the case for `unix:` and for IP addresses of the loopback.
    """
    scheme, _, rest = peer.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme not in ("ipv4", "ipv6"):
        return False
    host = urllib.parse.unquote(rest).rpartition(":")[0]
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _bearer_tokens(metadata: Iterable[tuple[str, str | bytes]]) -> Iterable[str]:
    for name, value in metadata:
        if name != "authorization" or not isinstance(value, str):
            continue
        if value[: len(_BEARER)].lower() == _BEARER:
            yield value[len(_BEARER) :].strip()
