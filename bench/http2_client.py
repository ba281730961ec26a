"""A gRPC client that costs a benchmark little: unary calls over one HTTP/2 connection.

It sends bytes that were made ready before and gives back the bytes of the answers, so that the
machine's time goes to the server that is measured. It knows what such calls need of HTTP/2
(RFC 9113) and gRPC, and nothing else: no TLS, no streams of messages, no compression.
"""

from __future__ import annotations

import functools
import socket
import struct
import time
from collections import deque
from typing import NamedTuple

import hpack

__all__ = [
    "DEADLINE_EXCEEDED",
    "NO_ANSWER",
    "OK",
    "ConnectionLost",
    "GrpcConnection",
    "Reply",
    "call",
    "framed",
]

OK = 0
DEADLINE_EXCEEDED = 4
NO_ANSWER = -1
"""The status of a reply whose stream was reset, or ended without a status of gRPC's."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_TABLE_SIZE, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME = 1, 3, 4, 5
_LARGEST_WINDOW = 2**31 - 1
_REPLENISH = 2**30
_REFUSED_STREAM = 7
# A header that is left out of the table, and whose name is not compressed.
_DETAILS = b"\x00\x17grpc-status-details-bin"
_RESETS = {8: "CANCEL", _REFUSED_STREAM: "REFUSED_STREAM"}


class ConnectionLost(Exception):
    """The server closed the connection, or broke the protocol."""


class Reply(NamedTuple):
    """The end of a call.

    Attributes:
      token: what the caller gave to `send`.
      status: gRPC's, or NO_ANSWER.
      message: the response's bytes; of a call that failed, what the server said.
    """

    token: object
    status: int
    message: bytes


class _Call(NamedTuple):
    token: object
    message: bytes
    due: float | None
    is_repeated: bool = False


class _Stream:
    __slots__ = ("call", "headers", "parts", "unsent", "window")

    def __init__(self, call: _Call, window: int) -> None:
        self.call = call
        self.window = window
        self.unsent = memoryview(b"")
        self.parts: list[bytes] = []
        self.headers: dict[bytes, bytes] = {}


class GrpcConnection:
    """One connection to a server, for any number of calls at a time of one method.

    Like any client of gRPC's it holds back calls beyond those that the server allows at a time,
    does not send those whose deadline passes meanwhile, and repeats once a call that the server did
    not begin (https://github.com/grpc/proposal/blob/master/A6-client-retries.md#transparent-retries).

    The socket does not block: wait until it is readable, then call `receive`; while `blocked`, wait
    until it is writable as well, then call `flush`.
    """

    def __init__(self, address: str, path: str) -> None:
        """Connects.

        Args:
          address: HOST:PORT.
          path: of the method, "/SERVICE/METHOD".

        Raises:
          ConnectionLost: nothing listens there.
        """
        host, _, port = address.rpartition(":")
        try:
            self.socket = socket.create_connection((host, int(port)), timeout=30)
        except OSError as error:
            raise ConnectionLost(f"{address}: {error}") from error
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", address),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        encoder = hpack.Encoder()
        # The first block puts the headers into the table of the server; the second refers to them,
        # and is the same from then on.
        self._block = bytes(encoder.encode(headers))
        self._next_block = bytes(encoder.encode(headers))
        self._streams: dict[int, _Stream] = {}
        self._next_id = 1
        self._window = self._initial_window = 2**16 - 1
        self._max_frame = 2**14
        self._waiting: deque[int] = deque()
        # As long as the server has said nothing there may be any number.
        self._most_streams = 2**32 - 1
        self._held: deque[_Call] = deque()
        self._received = b""
        self._unacknowledged = 0
        # No table for the server's headers: then equal headers are equal bytes.
        settings = struct.pack(">HIHI", _TABLE_SIZE, 0, _INITIAL_WINDOW, _LARGEST_WINDOW)
        window = struct.pack(">I", _LARGEST_WINDOW - self._window)
        # A server that is slow to read leaves much in it, which must not be copied for each frame.
        self._unsent = bytearray(_PREFACE + _frame(_SETTINGS, 0, 0, settings))
        self._unsent += _frame(_WINDOW_UPDATE, 0, 0, window)
        self.socket.setblocking(False)
        self.flush()

    @property
    def blocked(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return bool(self._unsent)

    def fileno(self) -> int:
        """Returns the socket's, for `select`."""
        return self.socket.fileno()

    def close(self) -> None:
        """Ends the connection, and with it whatever is under way."""
        self.socket.close()

    def send(self, token: object, message: bytes, timeout: float | None = None) -> None:
        """Starts a call.

        Args:
          token: comes back with the reply.
          message: the request's bytes, as `framed` gives them.
          timeout: seconds until the deadline that the server is told, if any.
        """
        call = _Call(token, message, None if timeout is None else time.monotonic() + timeout)
        if len(self._streams) >= self._most_streams:
            self._held.append(call)
        else:
            self._start(call, timeout)

    def _start(self, call: _Call, timeout: float | None) -> None:
        number, self._next_id = self._next_id, self._next_id + 2
        stream = self._streams[number] = _Stream(call, self._initial_window)
        block, self._block = self._block, self._next_block
        if timeout is not None:
            block += _timeout_header(timeout)
        self._unsent += _frame(_HEADERS, _END_HEADERS, number, block)
        stream.unsent = memoryview(call.message)
        self._waiting.append(number)
        self._write_messages()
        self.flush()

    def receive(self) -> list[Reply]:
        """Reads what has arrived, and returns the calls that it ends.

        Raises:
          ConnectionLost: there will be no more.
        """
        try:
            data = self.socket.recv(2**18)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ConnectionLost(str(error)) from error
        if not data:
            raise ConnectionLost("the server closed the connection")
        if self._received:
            data = self._received + data
        replies: list[Reply] = []
        position, end = 0, len(data)
        while end - position >= 9:
            length = int.from_bytes(data[position : position + 3], "big")
            start, position = position, position + 9 + length
            if position > end:
                position = start
                break
            number = int.from_bytes(data[start + 5 : start + 9], "big")
            payload = data[start + 9 : position]
            self._take(data[start + 3], data[start + 4], number, payload, replies)
        self._received = data[position:]
        if self._unacknowledged > _REPLENISH:
            size = struct.pack(">I", self._unacknowledged)
            self._unsent += _frame(_WINDOW_UPDATE, 0, 0, size)
            self._unacknowledged = 0
        if self._waiting:
            self._write_messages()
        if self._unsent:
            self.flush()
        if self._held:
            self._start_held(replies)
        return replies

    def flush(self) -> None:
        """Writes as much as the socket takes.

        Raises:
          ConnectionLost: it takes no more.
        """
        try:
            sent = self.socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionLost(str(error)) from error
        del self._unsent[:sent]

    def _start_held(self, replies: list[Reply]) -> None:
        """Starts calls that were held back, as far as the server allows it by now."""
        now = time.monotonic()
        while self._held:
            call = self._held[0]
            if call.due is not None and call.due <= now:
                replies.append(Reply(call.token, DEADLINE_EXCEEDED, b"there was no stream for it"))
            elif len(self._streams) < self._most_streams:
                self._start(call, None if call.due is None else call.due - now)
            else:
                break
            self._held.popleft()

    def _write_messages(self) -> None:
        """Turns messages into frames, as far as the server's windows allow."""
        for _ in range(len(self._waiting)):
            number = self._waiting.popleft()
            stream = self._streams.get(number)
            if stream is None:
                continue  # the server has answered already
            while stream.unsent:
                size = min(len(stream.unsent), self._window, stream.window, self._max_frame)
                if size <= 0:
                    self._waiting.append(number)
                    break
                last = size == len(stream.unsent)
                self._unsent += _frame_header(size, _DATA, _END_STREAM if last else 0, number)
                self._unsent += stream.unsent[:size]
                stream.unsent = stream.unsent[size:]
                stream.window -= size
                self._window -= size

    def _take(
        self, kind: int, flags: int, number: int, payload: bytes, replies: list[Reply]
    ) -> None:
        if kind in (_DATA, _HEADERS):
            self._take_answer(kind, flags, number, payload, replies)
        elif kind == _WINDOW_UPDATE:
            self._widen(number, int.from_bytes(payload, "big"))
        elif kind == _SETTINGS and not flags & _ACK:
            self._take_settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._unsent += _frame(_PING, _ACK, 0, payload)
        elif kind == _RESET:
            stream = self._streams.pop(number, None)
            if stream is not None:
                code = int.from_bytes(payload, "big")
                if code == _REFUSED_STREAM and not stream.call.is_repeated:
                    self._held.appendleft(stream.call._replace(is_repeated=True))
                    return
                text = f"stream reset: {_RESETS.get(code, code)}"
                replies.append(Reply(stream.call.token, NO_ANSWER, text.encode()))
        elif kind == _GO_AWAY:
            raise ConnectionLost(f"the server said to go away: {payload[8:]!r}")

    def _take_answer(
        self, kind: int, flags: int, number: int, payload: bytes, replies: list[Reply]
    ) -> None:
        if flags & _PADDED or (kind == _HEADERS and not flags & _END_HEADERS):
            raise ConnectionLost("the server pads frames or continues headers, which is not read")
        if kind == _DATA:
            self._unacknowledged += len(payload)
        stream = self._streams.get(number)
        if stream is None:
            return
        if kind == _DATA:
            stream.parts.append(payload)
        else:
            stream.headers = _headers(payload[5:] if flags & _PRIORITY else payload)
        if flags & _END_STREAM:
            del self._streams[number]
            replies.append(_reply(stream))

    def _take_settings(self, payload: bytes) -> None:
        for identifier, value in struct.iter_unpack(">HI", payload):
            if identifier == _INITIAL_WINDOW:
                for stream in self._streams.values():
                    stream.window += value - self._initial_window
                self._initial_window = value
            elif identifier == _MAX_FRAME:
                self._max_frame = value
            elif identifier == _MAX_STREAMS:
                self._most_streams = value
        self._unsent += _frame(_SETTINGS, _ACK, 0, b"")

    def _widen(self, number: int, size: int) -> None:
        if number == 0:
            self._window += size
        elif number in self._streams:
            self._streams[number].window += size


def framed(message: bytes) -> bytes:
    """Returns a message with gRPC's prefix: not compressed, and its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def call(address: str, path: str, message: bytes, timeout: float = 30) -> bytes:
    """Returns the response to one call.

    Raises:
      RuntimeError: the call failed, and how.
    """
    connection = GrpcConnection(address, path)
    connection.send(None, framed(message), timeout)
    end = time.monotonic() + timeout
    connection.socket.settimeout(timeout)
    replies: list[Reply] = []
    while not replies:
        if time.monotonic() > end:
            raise RuntimeError(f"{path} at {address}: no answer within {timeout} seconds")
        replies = connection.receive()
    connection.close()
    if replies[0].status != OK:
        raise RuntimeError(f"{path} at {address}: {replies[0].status}: {replies[0].message!r}")
    return replies[0].message


def _frame_header(size: int, kind: int, flags: int, number: int) -> bytes:
    return struct.pack(">IBI", size << 8 | kind, flags, number)


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return _frame_header(len(payload), kind, flags, number) + payload


def _timeout_header(seconds: float) -> bytes:
    """Returns `grpc-timeout` as a literal that the server's table does not take in."""
    name, value = b"grpc-timeout", f"{max(1, round(seconds * 1000))}m".encode()
    return bytes((0, len(name))) + name + bytes((len(value),)) + value


@functools.cache
def _headers(block: bytes) -> dict[bytes, bytes]:
    # Details come last, differ in each refusal, and take most of the time to decode.
    block = block.partition(_DETAILS)[0]
    decoder = hpack.Decoder()
    decoder.header_table_size = 0
    return {bytes(name): bytes(value) for name, value in decoder.decode(block, raw=True)}


def _reply(stream: _Stream) -> Reply:
    status = int(stream.headers.get(b"grpc-status", NO_ANSWER))
    if status != OK:
        return Reply(stream.call.token, status, stream.headers.get(b"grpc-message", b""))
    data = stream.parts[0] if len(stream.parts) == 1 else b"".join(stream.parts)
    if len(data) < 5 or data[:5] != b"\0" + (len(data) - 5).to_bytes(4, "big"):
        return Reply(stream.call.token, NO_ANSWER, b"the response is not one uncompressed message")
    return Reply(stream.call.token, OK, data[5:])
