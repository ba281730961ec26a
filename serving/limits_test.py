from __future__ import annotations

import resource

import pytest

from slipway.serving.configuration import LimitSettings
from slipway.serving.limits import address_warning, channel_options


def test_grpc_is_told_each_limit_in_its_own_unit() -> None:
    limits = LimitSettings(
        max_message_bytes=1001,
        max_metadata_bytes=1002,
        max_connections=1003,
        max_concurrent_streams=1004,
        handshake_seconds=1.5,
        keepalive_seconds=2.5,
        keepalive_timeout_seconds=3.5,
        min_ping_interval_seconds=4.5,
        max_connection_idle_seconds=5.5,
        max_connection_age_seconds=6.5,
        max_connection_age_grace_seconds=7.5,
    )
    options = channel_options(limits)
    assert len(dict(options)) == len(options)
    assert (
        dict(options).items()
        >= {
            "grpc.max_receive_message_length": 1001,
            "grpc.max_send_message_length": 1001,
            "grpc.max_metadata_size": 1002,
            "grpc.absolute_max_metadata_size": 1002,
            "grpc.max_allowed_incoming_connections": 1003,
            "grpc.max_concurrent_streams": 1004,
            "grpc.server_handshake_timeout_ms": 1500,
            "grpc.keepalive_time_ms": 2500,
            "grpc.keepalive_timeout_ms": 3500,
            "grpc.http2.min_recv_ping_interval_without_data_ms": 4500,
            "grpc.max_connection_idle_ms": 5500,
            "grpc.max_connection_age_ms": 6500,
            "grpc.max_connection_age_grace_ms": 7500,
            "grpc.so_reuseport": 0,
        }.items()
    )
    assert dict(channel_options(limits, shares_port=True))["grpc.so_reuseport"] == 1


def test_what_is_0_never_ends_a_connection() -> None:
    limits = LimitSettings(
        keepalive_seconds=0.0, max_connection_idle_seconds=0.0, max_connection_age_seconds=0.0
    )
    names = dict(channel_options(limits)).keys()
    assert not names & {
        "grpc.keepalive_time_ms",
        "grpc.max_connection_idle_ms",
        "grpc.max_connection_age_ms",
    }


@pytest.mark.parametrize(
    ("files", "connections"),
    [(1024, 896), (100, 1), (resource.RLIM_INFINITY, 2**31 - 1), (2**40, 2**31 - 1)],
)
def test_there_are_as_many_connections_as_files_may_be_open_less_the_servers_own(
    monkeypatch: pytest.MonkeyPatch, files: int, connections: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    options = dict(channel_options(LimitSettings(max_connections=0)))
    assert options["grpc.max_allowed_incoming_connections"] == connections


def test_a_limit_of_addresses_is_warned_of_and_none_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**30, resource.RLIM_INFINITY))
    assert address_warning().startswith("the address space is limited to 1073741824 bytes (ulimit")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert address_warning() == ""
