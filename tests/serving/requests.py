"""Requests made by hand, with tritonclient's own messages, for what its client would not send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status
from tritonclient.grpc import InferInput, service_pb2

_SERVICE = "/inference.GRPCInferenceService/"


def call(
    channel: grpc.Channel,
    method: str,
    request: Message,
    timeout: float = 60,
    metadata: Sequence[tuple[str, str]] | None = None,
) -> Any:
    """Returns the response to a unary method."""
    response = getattr(service_pb2, f"{method}Response")
    return channel.unary_unary(
        _SERVICE + method,
        request_serializer=type(request).SerializeToString,
        response_deserializer=response.FromString,
    )(request, timeout=timeout, metadata=metadata)


def send_bytes(channel: grpc.Channel, method: str, data: bytes) -> bytes:
    """Sends bytes that need not be a message."""
    response: bytes = channel.unary_unary(_SERVICE + method)(data, timeout=60)
    return response


def infer_request(model: str, **shapes: tuple[str, Sequence[int], bytes]) -> Any:
    """Returns a request with raw contents; inputs are NAME=(datatype, shape, bytes)."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, (datatype, shape, raw) in shapes.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    return request


def zeros(datatype: str, shape: Sequence[int], item_size: int = 4) -> tuple[str, Any, bytes]:
    """Returns an input for `infer_request` that is all zero."""
    return datatype, shape, bytes(math.prod(shape) * item_size)


def tensor(name: str, value: np.ndarray[Any, Any], datatype: str) -> InferInput:
    """Returns an input for tritonclient's client."""
    item = InferInput(name, list(value.shape), datatype)
    item.set_data_from_numpy(value)
    return item


def field_violations(error: grpc.RpcError) -> list[tuple[str, str]]:
    """Returns field and reason of each entry of the error's BadRequest details."""
    status = rpc_status.from_call(error)
    assert status is not None
    bad_request = error_details_pb2.BadRequest()
    for detail in status.details:
        assert detail.Unpack(bad_request)
    return [(item.field, item.reason) for item in bad_request.field_violations]
