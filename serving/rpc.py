"""From methods on messages to a gRPC service: bytes, statuses and threads.

Messages are parsed and serialised here rather than by gRPC, because it answers INTERNAL to bytes
that are no message, and that is the caller's mistake.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from slipway.serving.errors import (
    InternalError,
    InvalidRequestError,
    ServingError,
    UnsupportedError,
    status_message,
)

__all__ = ["Implementation", "generic_handler"]

_LOGGER = logging.getLogger(__name__)

_SLOW = ("RepositoryModelLoad", "RepositoryModelUnload")

Implementation = Callable[[Any, grpc.ServicerContext], Message]
"""Takes a method's request and gives its response, or raises ServingError."""


StreamImplementation = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]
"""Takes serialised requests and yields serialised responses, or raises ServingError."""


def generic_handler(
    service: ServiceDescriptor,
    implementations: Mapping[str, Implementation],
    streams: Mapping[str, tuple[StreamImplementation, ThreadPoolExecutor]],
    slow_pool: ThreadPoolExecutor,
) -> grpc.GenericRpcHandler:
    """Returns what answers every method of `service`.

    Args:
      service: from whichever descriptor pool.
      implementations: by the method's name; the others answer UNIMPLEMENTED.
      streams: of the methods that are streams, with threads of their own, so that no other method
        waits behind them.
      slow_pool: threads of the methods that load and unload models.
    """
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        if method.name in streams:
            implementation, pool = streams[method.name]
            stream_behavior = _stream_behavior(method, implementation)
            # An attribute that grpc looks for; without it the server's own threads are used.
            stream_behavior.experimental_thread_pool = pool  # type: ignore[attr-defined]
            handlers[method.name] = grpc.stream_stream_rpc_method_handler(stream_behavior)
        elif method.name in implementations:
            behavior = _behavior(method, implementations[method.name])
            if method.name in _SLOW:
                behavior.experimental_thread_pool = slow_pool  # type: ignore[attr-defined]
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(behavior)
        else:
            handlers[method.name] = _unimplemented(method)
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _behavior(
    method: MethodDescriptor, implementation: Implementation
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    request_class = GetMessageClass(method.input_type)

    def behavior(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            try:
                request = request_class.FromString(data)
            except DecodeError:
                raise InvalidRequestError(
                    f"the {len(data)} bytes received are no {method.input_type.full_name}"
                ) from None
            del data
            return implementation(request, context).SerializeToString()
        except ServingError as error:
            failure = error
            _LOGGER.info("%s: %s: %s", method.name, error.status.name, error)
        except Exception:
            failure = InternalError(f"{method.name} failed; the server's log has the cause")
            _LOGGER.exception("%s failed", method.name)
        _abort(context, failure)

    return behavior


def _stream_behavior(
    method: MethodDescriptor, implementation: StreamImplementation
) -> Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]:
    def behavior(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            yield from implementation(messages, context)
        except ServingError as error:
            _LOGGER.info("%s: %s: %s", method.name, error.status.name, error)
            _abort(context, error)

    return behavior


def _unimplemented(method: MethodDescriptor) -> grpc.RpcMethodHandler[bytes, bytes]:
    failure = UnsupportedError(f"{method.name} is not implemented by this server")

    def refuse(_: object, context: grpc.ServicerContext) -> NoReturn:
        _abort(context, failure)

    def refuse_stream(_: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        _abort(context, failure)

    if method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse_stream)
    return grpc.unary_unary_rpc_method_handler(refuse)


def _abort(context: grpc.ServicerContext, error: ServingError) -> NoReturn:
    context.abort_with_status(rpc_status.to_status(status_message(error)))
    raise AssertionError("abort_with_status does not return")
