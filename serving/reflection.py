"""Server reflection, which tools such as grpcurl and grpcui ask for what there is to call."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from slipway.proto import open_inference_pb2 as protocol

__all__ = ["Reflection"]

_V1_SERVICE = "grpc.reflection.v1.ServerReflection"

_THREADS = 8
"""For streams, each of which keeps one for as long as a tool is open; more wait for one."""


class Reflection(reflection.ReflectionServicer):
    """Describes the server's services. Its streams keep nobody waiting but one another."""

    def __init__(self) -> None:
        # Reflection reads one pool, and the protocol lives in a pool of its own.
        pool = DescriptorPool()
        files = (protocol.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
        for file in files:
            pool.AddSerializedFile(file.serialized_pb)
        pool.Add(_v1_file())
        names = [service.full_name for file in files for service in file.services_by_name.values()]
        super().__init__([*names, _V1_SERVICE], pool=pool)
        self._lock = threading.Lock()
        self._is_closed = False
        self._streams: set[grpc.ServicerContext] = set()

    def add_to(self, server: grpc.Server) -> None:
        """Makes it a service of `server`, which is not started yet."""
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        methods = {"ServerReflectionInfo": handler}
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(_V1_SERVICE, methods)]
        )

    def close(self) -> None:
        """Ends all streams, which would otherwise last as long as their tools are open."""
        with self._lock:
            self._is_closed = True
            streams = list(self._streams)
        for context in streams:
            context.cancel()

    def ServerReflectionInfo(self, request_iterator: Iterable[Any], context: Any) -> Iterator[Any]:
        with self._lock:
            if not self._is_closed:
                self._streams.add(context)
        if context not in self._streams:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server is draining")
        try:
            yield from super().ServerReflectionInfo(request_iterator, context)
        finally:
            with self._lock:
                self._streams.discard(context)

    # An attribute that grpc looks for; without it the server's own threads are used.
    ServerReflectionInfo.experimental_thread_pool = ThreadPoolExecutor(  # type: ignore[attr-defined]
        _THREADS, thread_name_prefix="reflection"
    )


def _v1_file() -> FileDescriptorProto:
    """Returns the definition of reflection's v1, which is that of v1alpha by another name.

    grpcio-reflection has v1alpha only, and there are tools that ask for v1 only.
    """
    file = FileDescriptorProto()
    file.ParseFromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    alpha, file.package = file.package, _V1_SERVICE.rpartition(".")[0]
    file.name = file.name.replace("v1alpha", "v1")
    for message in file.message_type:
        for field in filter(lambda item: item.HasField("type_name"), message.field):
            field.type_name = field.type_name.replace(f".{alpha}.", f".{file.package}.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(f".{alpha}.", f".{file.package}.")
            method.output_type = method.output_type.replace(f".{alpha}.", f".{file.package}.")
    return file
