"""ModelStreamInfer: many requests on one stream, each answered as soon as it is done."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator

import grpc

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import (
    InternalError,
    ResourceExhaustedError,
    ServingError,
    UnavailableError,
    status_message,
)
from slipway.serving.inference import InferenceFrontend
from slipway.serving.memory_budget import MemoryBudget
from slipway.serving.observation import Metadata
from slipway.serving.wire import length_delimited, split_request

__all__ = ["MAX_STREAMS", "InferenceStreams"]

_LOGGER = logging.getLogger(__name__)

MAX_STREAMS = 64
"""Streams that are open at the same time; each takes two threads."""

_IDLE_SECONDS = 30.0
"""For how long nothing has happened on a stream that gives way to another."""

_MAX_UNANSWERED = 256
"""Requests of one stream that are under way; no more are read until some are answered."""

_INFER_RESPONSE = protocol.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER


class InferenceStreams:
    """Serves the streams of all clients."""

    def __init__(self, frontend: InferenceFrontend, memory: MemoryBudget) -> None:
        """Makes it without streams.

        Args:
          frontend: takes the requests.
          memory: counts answers until they are read.
        """
        self._frontend = frontend
        self._memory = memory
        self._lock = threading.Lock()
        self._open: set[_Stream] = set()
        self._is_closing = False

    def serve(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Yields a serialised ModelStreamInferResponse for each of `messages`.

        Responses come in the order in which they are done; a client tells them apart by the id. A
        request that gets no result is answered on the stream, with the error's text, and the stream
        goes on.

        Where too many streams are open, the one that has been idle for longest ends for a new one.

        Raises:
          ResourceExhaustedError: too many streams are open, and none is idle.
          UnavailableError: the server stops, or another stream takes the place of this one, and no
            more requests are read; what had been read has been answered.
        """
        stream = _Stream(self._frontend, context, self._memory)
        with self._lock:
            if self._is_closing:
                raise _stopping()
            displaced = self._displaced() if len(self._open) >= MAX_STREAMS else None
            if displaced is not None:
                self._open.discard(displaced)
            self._open.add(stream)
        if displaced is not None:
            displaced.cut_off(_displacement())
        try:
            yield from stream.responses(messages)
        finally:
            with self._lock:
                self._open.discard(stream)
        if stream.reason is not None:
            raise stream.reason

    @property
    def open_count(self) -> int:
        """Returns how many streams are open."""
        return len(self._open)

    def close(self) -> None:
        """Ends every stream as soon as what it has under way is answered."""
        with self._lock:
            self._is_closing = True
            streams = list(self._open)
        for stream in streams:
            stream.cut_off(_stopping())

    def _displaced(self) -> _Stream:
        """Returns the stream that gives way to another.

        Raises:
          ResourceExhaustedError: none has been idle for long enough.
        """
        idle = min(self._open, key=lambda stream: stream.idle_since)
        if time.monotonic() - idle.idle_since < _IDLE_SECONDS:
            raise ResourceExhaustedError(
                f"{MAX_STREAMS} streams are open, no more may be, and none has been idle for "
                f"{_IDLE_SECONDS:g} seconds: close one, or use ModelInfer"
            )
        return idle


def _stopping() -> UnavailableError:
    return UnavailableError("the server stops: open the stream again, or elsewhere")


def _displacement() -> UnavailableError:
    return UnavailableError(
        f"{MAX_STREAMS} streams are open, and this one, which was idle for longest, gives way to "
        "another: open it again when there are requests to send"
    )


class _Stream:
    """One stream.

    Attributes:
      cancelled: whether its client has gone.
      reason: why its client may have sent requests that were not read; None if it has not.
    """

    def __init__(
        self, frontend: InferenceFrontend, context: grpc.ServicerContext, memory: MemoryBudget
    ) -> None:
        self.cancelled = False
        self.reason: ServingError | None = None
        self._memory = memory
        # Bytes of answers; None once nobody reads them any more.
        self._unread: int | None = 0
        self.metadata: Metadata = tuple(context.invocation_metadata())
        self._frontend = frontend
        self._context = context
        self._responses: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unanswered = 1  # that more may come counts as one
        self._last_read = time.monotonic()
        self._is_ended = False
        self._replies: set[_StreamReply] = set()
        self._room = threading.Semaphore(_MAX_UNANSWERED)

    def responses(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        if not self._context.add_callback(self._cancel):
            return
        reader = threading.Thread(target=self._read, args=(messages,), daemon=True)
        reader.start()
        try:
            while (response := self._responses.get()) is not None:
                yield response
                self._last_read = time.monotonic()
                self._count_unread(-len(response))
                self._room.release()
        finally:
            with self._lock:
                unread, self._unread = self._unread, None
            self._memory.give_back(unread or 0)

    def answer(self, reply: _StreamReply, response: bytes) -> None:
        with self._lock:
            self._replies.discard(reply)
        self._count_unread(len(response))
        self._responses.put(response)
        self._finish_one()

    def _count_unread(self, size: int) -> None:
        with self._lock:
            if self._unread is not None:
                self._unread += size
                self._memory.add(size)

    @property
    def idle_since(self) -> float:
        """Returns since when nothing is to be done, by the monotonic clock; infinite if it is."""
        with self._lock:
            is_idle = self._unanswered == 1 and self._unread == 0 and not self._is_ended
            return self._last_read if is_idle else math.inf

    def cut_off(self, reason: ServingError) -> None:
        """Takes no more requests, though the client may send some."""
        self._end(reason)

    def _end(self, reason: ServingError | None = None) -> None:
        with self._lock:
            if self._is_ended:
                return
            self._is_ended = True
            self.reason = reason
        self._finish_one()

    def _finish_one(self) -> None:
        with self._lock:
            self._unanswered -= 1
            is_last = self._unanswered == 0
        if is_last:
            self._responses.put(None)

    def _cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            replies = list(self._replies)
        for reply in replies:
            reply.cancel()
        self._room.release()
        self._responses.put(None)

    def _read(self, messages: Iterator[bytes]) -> None:
        try:
            for message in messages:
                self._room.acquire()
                with self._lock:
                    if self._is_ended or self.cancelled:
                        return
                    self._unanswered += 1
                    reply = _StreamReply(self, message)
                    self._replies.add(reply)
                self._take(message, reply)
        except grpc.RpcError:
            return  # the client has gone
        except Exception as error:
            # grpcio raises a bare Exception out of the iterator when the stream breaks.
            if not self.cancelled and self._context.is_active():
                _LOGGER.error("a stream cannot be read", exc_info=error)
        finally:
            self._end()

    def _take(self, message: bytes, reply: _StreamReply) -> None:
        remaining = self._context.time_remaining()
        deadline = float("inf") if remaining is None else time.monotonic() + remaining
        try:
            reply.on_cancel = self._frontend.take(message, reply, deadline)
            if self.cancelled:  # before there was anyone to tell
                reply.cancel()
        except ServingError as error:
            reply.fail(error)
        except Exception:
            _LOGGER.exception("ModelStreamInfer failed")
            reply.fail(InternalError("ModelStreamInfer failed; the server's log has the cause"))


class _StreamReply:
    """Where the answer to one request of a stream goes."""

    method = "ModelStreamInfer"

    def __init__(self, stream: _Stream, message: bytes) -> None:
        self._stream = stream
        self._message = message
        self.on_cancel: Callable[[], None] | None = None

    def cancel(self) -> None:
        if self.on_cancel is not None:
            self.on_cancel()

    @property
    def cancelled(self) -> bool:
        return self._stream.cancelled

    @property
    def metadata(self) -> Metadata:
        return self._stream.metadata

    def respond(self, message: bytes) -> None:
        self._stream.answer(self, length_delimited(_INFER_RESPONSE, message))

    def fail(self, error: ServingError) -> None:
        try:
            identifier = split_request(self._message)[1].decode()
        except (ServingError, UnicodeDecodeError):
            identifier = ""
        response = protocol.ModelStreamInferResponse(
            error_message=status_message(error).message,
            infer_response=protocol.ModelInferResponse(id=identifier),
        )
        self._stream.answer(self, response.SerializeToString())
