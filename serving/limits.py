"""What gRPC is told about limits, and what the system's are."""

from __future__ import annotations

import resource

from slipway.serving.configuration import LimitSettings

__all__ = ["address_warning", "channel_options"]

_OWN_FILES = 128
"""Files that the server opens itself: programs, logs, metrics."""

_MAX_PENDING_CALLS = 100_000


def channel_options(limits: LimitSettings, *, shares_port: bool = False) -> list[tuple[str, int]]:
    """Returns the options of a gRPC server that has these limits.

    Without `shares_port` no other process may listen on the same port.

    gRPC's include/grpc/impl/channel_arg_names.h has what they mean.
    """
    options = [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        # Between the two, gRPC refuses by chance.
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        ("grpc.max_allowed_incoming_connections", limits.max_connections or _connections()),
        ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
        ("grpc.server_handshake_timeout_ms", _milliseconds(limits.handshake_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(limits.keepalive_timeout_seconds)),
        (
            "grpc.http2.min_recv_ping_interval_without_data_ms",
            _milliseconds(limits.min_ping_interval_seconds),
        ),
        (
            "grpc.max_connection_age_grace_ms",
            _milliseconds(limits.max_connection_age_grace_seconds),
        ),
        # A client that has gone without a word is found out without calls too.
        ("grpc.keepalive_permit_without_calls", 1),
        # Calls that the loop has not come to yet. Beyond these, gRPC's core would end them without
        # a word of why; the schedulers know what can be done in time.
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        # Two servers on one port would share its connections in silence.
        ("grpc.so_reuseport", int(shares_port)),
    ]
    for name, seconds in (
        ("grpc.keepalive_time_ms", limits.keepalive_seconds),
        ("grpc.max_connection_idle_ms", limits.max_connection_idle_seconds),
        ("grpc.max_connection_age_ms", limits.max_connection_age_seconds),
    ):
        if seconds:
            options.append((name, _milliseconds(seconds)))
    return options


def address_warning() -> str:
    """Returns what may happen because addresses are limited, or "" if they are not.

    How many threads and models need is known when they have them. gRPC then ends the process
    without a word of why, or waits for ever.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return ""
    return (
        f"the address space is limited to {soft} bytes (ulimit -v): the process hangs or is "
        "aborted when a thread needs more; take that limit away, and limit its container's memory"
    )


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _connections() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 2**31 - 1
    return max(1, min(soft - _OWN_FILES, 2**31 - 1))
