"""Clients that do not wait for ever for an answer."""

from __future__ import annotations

import json

from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, InferenceServerClient

__all__ = ["open_client"]


def open_client(address: str, timeout: float = 60.0) -> InferenceServerClient:
    """Returns tritonclient's client, whose calls and streams fail after about `timeout` seconds.

    By itself it waits until Bazel ends the test, and then nobody knows where that was. A call's
    own `client_timeout` may only be shorter.
    """
    # https://grpc.io/docs/guides/service-config: the empty name means all methods.
    config = {"methodConfig": [{"name": [{}], "timeout": f"{timeout:g}s"}]}
    options = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
        ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    ]
    return InferenceServerClient(address, channel_args=options)
