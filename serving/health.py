"""grpc.health.v1 for the server as a whole ("") and for each model by its name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

__all__ = ["Health"]


class Health(health.HealthServicer):
    """The standard servicer, NOT_SERVING at first, whose watchers can be sent away."""

    def __init__(self) -> None:
        super().__init__()
        self._watchers: set[grpc.ServicerContext] = set()
        self._watchers_lock = threading.Lock()
        self._reported: dict[str, bool] = {}
        self.report("", False)

    def report(self, service: str, is_serving: bool) -> None:
        """Sets the status of `service`, and tells its watchers if it is another one."""
        if self._reported.get(service) == is_serving:
            return
        self._reported[service] = is_serving
        response = health_pb2.HealthCheckResponse
        self.set(service, response.SERVING if is_serving else response.NOT_SERVING)

    def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send_response_callback: Callable[[Any], None] | None = None,
    ) -> Any:
        with self._watchers_lock:
            self._watchers.add(context)
        if not context.add_callback(lambda: self._forget(context)):
            self._forget(context)
        return super().Watch(request, context, send_response_callback)

    def close(self) -> None:
        """Reports NOT_SERVING for good, and ends the watches."""
        self.enter_graceful_shutdown()
        with self._watchers_lock:
            watchers = list(self._watchers)
        # A server that stops waits for every call, and a watch has no end of its own.
        for context in watchers:
            context.cancel()

    def _forget(self, context: grpc.ServicerContext) -> None:
        with self._watchers_lock:
            self._watchers.discard(context)
