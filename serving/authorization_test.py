from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import pytest

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.authorization import (
    CONTROL_METHODS,
    Access,
    Authorizer,
    is_loopback,
)
from slipway.serving.errors import PermissionDeniedError, ServingError, UnauthenticatedError

SERVICE = protocol.DESCRIPTOR.services_by_name["GRPCInferenceService"]
METHODS = {f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods}
INFER = f"/{SERVICE.full_name}/ModelInfer"
LOAD = f"/{SERVICE.full_name}/RepositoryModelLoad"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
# What only calls models, or tells of them. A method that is new needs a decision.
HARMLESS = {
    f"/{SERVICE.full_name}/{name}"
    for name in (
        "ModelConfig",
        "ModelInfer",
        "ModelMetadata",
        "ModelReady",
        "ModelStatistics",
        "ModelStreamInfer",
        "RepositoryIndex",
        "ServerLive",
        "ServerMetadata",
        "ServerReady",
    )
}
OPEN = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
    f"/{SERVICE.full_name}/ServerLive",
    f"/{SERVICE.full_name}/ServerReady",
    f"/{SERVICE.full_name}/ModelReady",
]

HERE = "ipv4:127.0.0.1:1234"
ELSEWHERE = "ipv4:192.0.2.7:1234"


@dataclass
class Someone:
    address: str = ELSEWHERE
    names: Sequence[str] = ()
    metadata: Sequence[tuple[str, str | bytes]] = field(default_factory=list)

    def peer(self) -> str:
        return self.address

    def identities(self) -> Collection[str]:
        return self.names


def bearer(*values: str | bytes) -> Someone:
    return Someone(metadata=[("authorization", value) for value in values])


def refusal(authorizer: Authorizer, method: str, caller: Someone) -> type[ServingError]:
    with pytest.raises(ServingError) as caught:
        authorizer.check(method, caller)
    return type(caught.value)


def test_control_methods_are_all_but_the_harmless_ones() -> None:
    assert METHODS - HARMLESS == CONTROL_METHODS


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        (HERE, True),
        ("ipv4:127.255.3.1:1", True),
        ("ipv6:%5B::1%5D:1234", True),
        ("ipv6:[::1]:1234", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:1234", True),
        ("unix:", True),
        ("unix:/run/slipway.socket", True),
        ("unix-abstract:name", True),
        (ELSEWHERE, False),
        ("ipv4:128.0.0.1:1", False),
        ("ipv4:10.127.0.1:1", False),
        ("ipv6:%5B::2%5D:1234", False),
        ("ipv6:%5B::ffff:192.0.2.1%5D:1234", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", False),
        ("ipv4:127.0.0.1.example.org:1", False),
        ("ipv4:", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_who_is_on_this_host(peer: str, expected: bool) -> None:
    assert is_loopback(peer) is expected


def test_by_default_everyone_infers_and_only_this_host_controls() -> None:
    authorizer = Authorizer()
    for method in METHODS - CONTROL_METHODS | {REFLECTION, "/other.Service/Method"}:
        authorizer.check(method, Someone(ELSEWHERE))
    for method in CONTROL_METHODS:
        authorizer.check(method, Someone(HERE))
        assert refusal(authorizer, method, Someone(ELSEWHERE)) is PermissionDeniedError
        assert refusal(authorizer, method, bearer("Bearer x")) is PermissionDeniedError


def test_without_loopback_nobody_controls() -> None:
    authorizer = Authorizer(control=Access())
    assert refusal(authorizer, LOAD, Someone(HERE)) is PermissionDeniedError


def test_inference_can_be_left_to_this_host() -> None:
    authorizer = Authorizer(inference=Access(from_loopback=True))
    authorizer.check(INFER, Someone(HERE))
    assert refusal(authorizer, INFER, Someone(ELSEWHERE)) is PermissionDeniedError


def test_tokens_are_asked_of_all_but_orchestrators() -> None:
    authorizer = Authorizer(inference=Access("secret".__eq__))
    for method in METHODS - CONTROL_METHODS - set(OPEN) | {REFLECTION, "/other.Service/Method"}:
        assert refusal(authorizer, method, Someone(HERE)) is UnauthenticatedError
        assert refusal(authorizer, method, bearer("Bearer other")) is PermissionDeniedError
        authorizer.check(method, bearer("Bearer secret"))
    for method in OPEN:
        authorizer.check(method, Someone(ELSEWHERE))


def test_tokens_for_one_are_not_for_the_other_and_being_here_is_not_enough() -> None:
    authorizer = Authorizer(Access("reader".__eq__), Access("operator".__eq__, from_loopback=True))
    authorizer.check(INFER, bearer("Bearer reader"))
    authorizer.check(LOAD, bearer("Bearer operator"))
    assert refusal(authorizer, LOAD, bearer("Bearer reader")) is PermissionDeniedError
    assert refusal(authorizer, INFER, bearer("Bearer operator")) is PermissionDeniedError
    assert refusal(authorizer, LOAD, Someone(HERE)) is UnauthenticatedError


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["bearer secret"], None),
        (["BEARER  secret "], None),
        (["secret"], UnauthenticatedError),
        (["Basic secret"], UnauthenticatedError),
        ([b"Bearer \xff"], UnauthenticatedError),  # as gRPC gives what is no text
        (["Bearer"], UnauthenticatedError),
        (["Bearer "], PermissionDeniedError),
        (["Bearer other", "Bearer secret"], PermissionDeniedError),
        (["Bearer secret", "Bearer secret"], PermissionDeniedError),
    ],
)
def test_forms_of_the_header(
    values: list[str | bytes], expected: type[ServingError] | None
) -> None:
    authorizer = Authorizer(inference=Access("secret".__eq__))
    if expected is None:
        authorizer.check(INFER, bearer(*values))
    else:
        assert refusal(authorizer, INFER, bearer(*values)) is expected


def test_names_in_certificates_do_without_a_token() -> None:
    authorizer = Authorizer(control=Access("secret".__eq__, frozenset(["operator"])))
    authorizer.check(LOAD, Someone(names=["host", "operator"]))
    authorizer.check(LOAD, bearer("Bearer secret"))
    assert refusal(authorizer, LOAD, Someone(names=["operators"])) is UnauthenticatedError
    only = Authorizer(control=Access(identities=frozenset(["operator"]), from_loopback=True))
    assert refusal(only, LOAD, Someone(HERE, names=["other"])) is PermissionDeniedError


def test_refusals_are_alike_and_say_nothing_of_what_would_do() -> None:
    tokens = Authorizer(control=Access("secret".__eq__))
    names = Authorizer(control=Access(identities=frozenset(["operator"])))
    nobody = Authorizer(control=Access())
    texts = set()
    for authorizer in (tokens, names, nobody):
        with pytest.raises(PermissionDeniedError) as caught:
            authorizer.check(LOAD, bearer("Bearer wrong"))
        texts.add(str(caught.value))
    assert texts == {"this caller may not call this method"}
