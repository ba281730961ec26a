"""From methods on messages to a gRPC service: bytes, statuses and threads.

Messages are parsed and serialised here rather than by gRPC, because it answers INTERNAL to bytes
that are no message, and that is the caller's mistake.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from slipway.program.words import counted
from slipway.serving.errors import (
    InternalError,
    InvalidRequestError,
    ServingError,
    UnsupportedError,
    status_message,
)
from slipway.serving.wire_call import OnRequest, WireCall

__all__ = ["Implementation", "StreamImplementation", "stream_handler", "unary_methods"]

_LOGGER = logging.getLogger(__name__)

_SLOW = ("RepositoryModelLoad", "RepositoryModelUnload")

Implementation = Callable[[Any], Message]
"""Takes a method's request and gives its response, or raises ServingError."""


StreamImplementation = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]
"""Takes serialised requests and yields serialised responses, or raises ServingError."""


def unary_methods(
    service: ServiceDescriptor,
    implementations: Mapping[str, Implementation],
    pool: ThreadPoolExecutor,
    slow_pool: ThreadPoolExecutor,
) -> dict[str, OnRequest]:
    """Returns what answers the methods of `service` that take and give one message.

    Args:
      service: from whichever descriptor pool.
      implementations: by the method's name; the others answer UNIMPLEMENTED.
      pool: the threads that run them.
      slow_pool: threads of the methods that load and unload models.
    """
    return {
        f"/{service.full_name}/{method.name}": _on_request(
            method,
            implementations.get(method.name),
            slow_pool if method.name in _SLOW else pool,
        )
        for method in service.methods
        if not method.client_streaming
    }


def _on_request(
    method: MethodDescriptor, implementation: Implementation | None, pool: ThreadPoolExecutor
) -> OnRequest:
    if implementation is None:
        failure = UnsupportedError(f"{method.name} is not implemented by this server")

        def refuse(call: WireCall, _: bytes) -> None:
            call.fail(failure)

        return refuse

    def submit(call: WireCall, message: bytes) -> None:
        pool.submit(_answer, method, implementation, call, message)

    return submit


def _answer(
    method: MethodDescriptor, implementation: Implementation, call: WireCall, message: bytes
) -> None:
    try:
        call.respond(implementation(_parsed(method, message)).SerializeToString())
    except ServingError as error:
        _LOGGER.info("%s: %s: %s", method.name, error.status.name, error)
        call.fail(error)
    except Exception:
        _LOGGER.exception("%s failed", method.name)
        call.fail(InternalError(f"{method.name} failed; the server's log has the cause"))


def _parsed(method: MethodDescriptor, message: bytes) -> Message:
    try:
        return GetMessageClass(method.input_type).FromString(message)
    except DecodeError:
        raise InvalidRequestError(
            f"the message received, {counted(len(message), 'byte')}, is no "
            f"{method.input_type.full_name}"
        ) from None


def stream_handler(
    service: ServiceDescriptor,
    method: str,
    implementation: StreamImplementation,
    pool: ThreadPoolExecutor,
) -> grpc.GenericRpcHandler:
    """Returns what answers a method of `service` that takes and gives streams.

    Args:
      service: from whichever descriptor pool.
      method: its name.
      implementation: of the method.
      pool: threads of its own, of which each stream keeps one for as long as it lasts.
    """

    def behavior(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            yield from implementation(messages, context)
        except ServingError as error:
            _LOGGER.info("%s: %s: %s", method, error.status.name, error)
            context.abort_with_status(rpc_status.to_status(status_message(error)))

    # An attribute that grpc looks for; without it the server's own threads are used.
    behavior.experimental_thread_pool = pool  # type: ignore[attr-defined]
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(behavior)
    return grpc.method_handlers_generic_handler(service.full_name, {method: handler})
