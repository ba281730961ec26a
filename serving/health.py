"""grpc.health.v1 for the server as a whole ("") and for each model by its name.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md says what each method means.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from slipway.program.words import counted
from slipway.serving.errors import InvalidRequestError, NotFoundError, UnavailableError, quoted
from slipway.serving.wire_call import OnRequest, WireCall

__all__ = ["Health"]

_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_Status = health_pb2.HealthCheckResponse


class Health:
    """Says who is serving, NOT_SERVING at first, to whoever asks or watches. It never waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self._statuses: dict[str, int] = {"": _Status.NOT_SERVING}
        self._watches: dict[WireCall, _Watch] = {}

    @property
    def methods(self) -> Mapping[str, OnRequest]:
        """Returns what answers each method, by its full name."""
        return {
            f"/{_SERVICE}/Check": self._check,
            f"/{_SERVICE}/List": self._list,
            f"/{_SERVICE}/Watch": self._watch,
        }

    def report(self, service: str, is_serving: bool) -> None:
        """Sets the status of `service`, and tells those who watch it."""
        with self._lock:
            if not self._is_closed:
                self._set(service, _Status.SERVING if is_serving else _Status.NOT_SERVING)

    def close(self) -> None:
        """Reports NOT_SERVING for good, and ends the watches."""
        with self._lock:
            self._is_closed = True
            for service in self._statuses:
                self._set(service, _Status.NOT_SERVING)
            for watch in self._watches.values():
                watch.close()

    def cancel_watches(self) -> None:
        """Ends, at once, those watches that are left: of clients that do not read."""
        with self._lock:
            for call in self._watches:
                call.cancel()

    def _set(self, service: str, status: int) -> None:
        self._statuses[service] = status
        for watch in self._watches.values():
            if watch.service == service:
                watch.tell(status)

    def _check(self, call: WireCall, message: bytes) -> None:
        service = _service(message)
        with self._lock:
            status = self._statuses.get(service)
        if status is None:
            raise NotFoundError(f"{quoted(service)} is neither a model nor '', the server")
        call.respond(_Status(status=status).SerializeToString())

    def _list(self, call: WireCall, _: bytes) -> None:
        with self._lock:
            statuses = {name: _Status(status=status) for name, status in self._statuses.items()}
        response = health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined]
        call.respond(response.SerializeToString())

    def _watch(self, call: WireCall, message: bytes) -> None:
        watch = _Watch(call, _service(message))
        with self._lock:
            # Set first: the client may go at any time from now on.
            call.on_cancel = lambda: self._forget(call)
            if call.cancelled:
                return
            self._watches[call] = watch
            watch.tell(self._statuses.get(watch.service, _Status.SERVICE_UNKNOWN))
            if self._is_closed:
                watch.close()

    def _forget(self, call: WireCall) -> None:
        with self._lock:
            self._watches.pop(call, None)
            call.on_cancel = None  # which holds the call


class _Watch:
    """A client that is told of each change of a service, or of the last of those it missed."""

    def __init__(self, call: WireCall, service: str) -> None:
        self.service = service
        self._call = call
        self._lock = threading.Lock()
        self._status: int | None = None
        self._told: int | None = None
        self._is_sending = False
        self._is_closed = False
        self._has_ended = False

    def tell(self, status: int) -> None:
        """Sends a status, unless it is the one that was sent last, when the client reads."""
        with self._lock:
            self._status = status
            self._go_on()

    def close(self) -> None:
        """Ends the call when what there is to tell has been sent."""
        with self._lock:
            self._is_closed = True
            self._go_on()

    def _go_on(self) -> None:
        if self._is_sending or self._has_ended:
            return
        if self._status is not None and self._status != self._told:
            self._is_sending = True
            self._told = self._status
            self._call.send(_Status(status=self._status).SerializeToString(), self._on_sent)
        elif self._is_closed:
            self._has_ended = True
            self._call.fail(UnavailableError("the server stops: watch it again, or elsewhere"))

    def _on_sent(self) -> None:
        with self._lock:
            self._is_sending = False
            self._go_on()


def _service(message: bytes) -> str:
    """Returns what a serialised HealthCheckRequest asks for."""
    try:
        return str(health_pb2.HealthCheckRequest.FromString(message).service)
    except DecodeError:
        raise InvalidRequestError(
            f"the message received, {counted(len(message), 'byte')}, is no "
            "grpc.health.v1.HealthCheckRequest"
        ) from None
