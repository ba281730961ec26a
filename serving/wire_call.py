"""One call on the wire, from its message to its answer, without a thread that waits."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from grpc_status import rpc_status

from slipway.serving.errors import (
    InternalError,
    InvalidRequestError,
    OverloadedError,
    ServingError,
    status_message,
)

if TYPE_CHECKING:
    from slipway.serving.transport import InferenceTransport

__all__ = ["OnRequest", "WireCall"]

# Type checkers know nothing of it.
cygrpc: Any = importlib.import_module("grpc._cython.cygrpc")

_LOGGER = logging.getLogger(__name__)

_NO_FLAGS = 0
_OK = cygrpc.StatusCode.ok


class WireCall:
    """One call of a method that takes one message.

    It must be answered once, by `respond` or by `fail`; before `fail` there may be any number of
    `send`, for a stream of responses.

    Attributes:
      method: the method's name, without that of its service.
      deadline: when the client gives up, by the monotonic clock, in seconds; infinite if it never
        does.
      metadata: what the client sent beside the message, as pairs of a name and a value.
      cancelled: whether the client has gone.
      on_cancel: called by the loop when the client goes; set it before the loop goes on.
    """

    __slots__ = (
        "_call",
        "_due",
        "_has_begun",
        "_on_request",
        "_transport",
        "cancelled",
        "deadline",
        "metadata",
        "method",
        "on_cancel",
    )

    def __init__(
        self, transport: InferenceTransport, event: Any, method: str, on_request: OnRequest
    ) -> None:
        self._transport = transport
        self._call = event.call
        self._on_request = on_request
        self._due = 2
        self._has_begun = False
        self.method = method
        # At once, for the wall clock may jump: grpcio has just made its time of this one's.
        self.deadline: float = event.call_details.deadline - time.time() + time.monotonic()
        self.metadata = event.invocation_metadata
        self.cancelled = False
        self.on_cancel: Callable[[], None] | None = None

    def respond(self, message: bytes) -> None:
        """Answers with a serialised response. May be called from any thread."""
        memory, size = self._transport.memory, len(message)

        def finish(_: Any) -> tuple[WireCall | None, tuple[()]]:
            memory.give_back(size)
            return self._finished()

        # It is kept until the client has read it, or gone.
        memory.add(size)
        is_sent = self._send(
            (
                cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),
                cygrpc.SendMessageOperation(message, _NO_FLAGS),
                cygrpc.SendStatusFromServerOperation((), _OK, b"", _NO_FLAGS),
            ),
            finish,
        )
        if not is_sent:
            memory.give_back(size)

    def send(self, message: bytes, on_sent: Callable[[], None]) -> None:
        """Sends one of several responses. May be called from any thread.

        Args:
          message: the response, serialised.
          on_sent: called by the loop once it is on its way, which is for the client to allow.
            Nothing else may be sent before.
        """

        def finish(_: Any) -> tuple[WireCall | None, tuple[Callable[[], None], ...]]:
            return self._finished()[0], (on_sent,)

        self._send(
            (*self._beginning(), cygrpc.SendMessageOperation(message, _NO_FLAGS)),
            finish,
        )

    def fail(self, error: ServingError) -> None:
        """Answers with a status. May be called from any thread."""
        if isinstance(error, OverloadedError):
            left = error.time_left
            if left is None:
                left = self.deadline - time.monotonic()
            self._transport.note_refusal(self._call.peer(), left)
        self._fail(error)

    def cancel(self) -> None:
        """Ends it at once, whatever is under way. May be called from any thread."""
        self._call.cancel()

    def _fail(self, error: ServingError) -> None:
        status = rpc_status.to_status(status_message(error))
        trailers = (*status.trailing_metadata, *error.trailing_metadata)
        self._send(
            (
                *self._beginning(),
                cygrpc.SendStatusFromServerOperation(
                    trailers, status.code.value[0], status.details.encode(), _NO_FLAGS
                ),
            ),
            self._on_sent,
        )

    def start(self) -> None:
        """Waits, without a thread, for the message and for the client to go."""
        self._transport.incomplete.add(self)
        self._call.start_server_batch(
            (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._on_close
        )
        self._call.start_server_batch(
            (cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._on_message
        )

    def refuse(self, error: ServingError) -> None:
        """Answers, instead of `start`, without taking a message."""
        self._due -= 1
        self._call.start_server_batch(
            (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._on_close
        )
        self._fail(error)

    def _beginning(self) -> tuple[Any, ...]:
        """Returns what goes before the first thing that is sent, and nothing later."""
        if self._has_begun:
            return ()
        self._has_begun = True
        return (cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),)

    def _send(self, operations: tuple[Any, ...], on_done: Callable[[Any], Any]) -> bool:
        """Returns whether there is anybody to read it; else nothing is sent."""
        with self._transport.lock:
            if self.cancelled:
                return False
            self._due += 1
        self._call.start_server_batch(operations, on_done)
        return True

    def _on_message(self, event: Any) -> tuple[WireCall | None, tuple[()]]:
        message = event.batch_operations[0].message()
        try:
            self._transport.incomplete.remove(self)
        except KeyError:
            return self._finished()  # it was refused meanwhile
        if message is not None:
            self._transport.memory.pass_over(len(message))
            self._hand_over(message)
        else:
            # Either it was cut off, and nobody reads this, or the client sent none, or ended in the
            # middle of it, which gRPC does not tell from none.
            text = f"{self.method} needs one request message, and got none, or none that was whole"
            self.fail(InvalidRequestError(text))
        return self._finished()

    def _hand_over(self, message: bytes) -> None:
        try:
            self._on_request(self, message)
        except ServingError as error:
            self.fail(error)
        except Exception:
            _LOGGER.exception("%s failed", self.method)
            self.fail(InternalError(f"{self.method} failed; the server's log has the cause"))

    def _on_close(self, event: Any) -> tuple[WireCall | None, tuple[()]]:
        if event.batch_operations[0].cancelled():
            with self._transport.lock:
                self.cancelled = True
            if self.on_cancel is not None:
                self.on_cancel()
        return self._finished()

    def _on_sent(self, _: Any) -> tuple[WireCall | None, tuple[()]]:
        return self._finished()

    def _finished(self) -> tuple[WireCall | None, tuple[()]]:
        """Returns what grpcio's loop takes from a tag: the call, once nothing of it is awaited."""
        with self._transport.lock:
            self._due -= 1
            return (None if self._due else self), ()


OnRequest = Callable[[WireCall, bytes], None]
"""Takes a call and its message, in the loop, and must not wait. An error that it raises is the
answer."""
