"""The limit of the wire: a gRPC server in Python that does nothing.

Usage: echo_server.py THREADS

Answers /echo/N with the same N bytes, whatever the request was. It is the fastest of grpcio's own
servers: synchronous, and bytes in and out. Prints HOST:PORT when it serves.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc


@functools.cache
def _handler(size: int) -> grpc.RpcMethodHandler[bytes, bytes]:
    response = bytes(size)
    behavior: Callable[[bytes, grpc.ServicerContext], bytes] = lambda _, __: response  # noqa: E731
    return grpc.unary_unary_rpc_method_handler(behavior)


class _Echo(grpc.GenericRpcHandler):
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        return _handler(int(handler_call_details.method.rpartition("/")[2]))


def main() -> None:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(int(sys.argv[1])), options=unlimited)
    server.add_generic_rpc_handlers((_Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
