"""What those who watch are told, whenever they read; servers' health is in //tests/operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from grpc_health.v1 import health_pb2

from slipway.serving.errors import ServingError, UnavailableError
from slipway.serving.health import Health
from slipway.serving.wire_call import WireCall

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Call:
    """A call whose client takes what is sent when it is told to."""

    def __init__(self, cancelled: bool = False) -> None:
        self.cancelled = cancelled
        self.on_cancel: Callable[[], None] | None = None
        self.statuses: list[int] = []
        self.errors: list[ServingError] = []
        self._on_sent: list[Callable[[], None]] = []

    def send(self, message: bytes, on_sent: Callable[[], None]) -> None:
        self.statuses.append(health_pb2.HealthCheckResponse.FromString(message).status)
        self._on_sent.append(on_sent)

    def fail(self, error: ServingError) -> None:
        self.errors.append(error)

    def take_all(self) -> None:
        while self._on_sent:
            self._on_sent.pop()()


def watch(health: Health, call: Call) -> None:
    health.methods["/grpc.health.v1.Health/Watch"](cast(WireCall, call), b"")


def test_whoever_watches_is_told_of_the_end_for_good() -> None:
    health, call = Health(), Call()
    health.report("", True)
    watch(health, call)
    call.take_all()
    health.close()
    health.report("", True)
    assert call.errors == []  # before the last status was taken
    call.take_all()
    assert call.statuses == [health_pb2.HealthCheckResponse.SERVING, NOT_SERVING]
    assert [type(error) for error in call.errors] == [UnavailableError]


def test_whoever_begins_to_watch_at_the_end_is_told_and_sent_away() -> None:
    health, call = Health(), Call()
    health.close()
    watch(health, call)
    call.take_all()
    assert call.statuses == [NOT_SERVING]
    assert [type(error) for error in call.errors] == [UnavailableError]


def test_whoever_has_gone_is_told_nothing() -> None:
    health, call = Health(), Call(cancelled=True)
    watch(health, call)
    health.report("", True)
    assert call.statuses == []
