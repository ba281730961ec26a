"""As much of HTTP/2 as it takes to send gRPC what no gRPC client would send."""

from __future__ import annotations

import socket
import struct

from slipway.tests.operations.load import INFER

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Returns a frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def greeting() -> bytes:
    """Returns what a client sends first."""
    return _PREFACE + frame(_SETTINGS, 0, 0, b"")


def call_headers() -> bytes:
    """Returns the frame that begins a call of ModelInfer on stream 1, without compression."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": INFER,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(_HEADERS, _END_HEADERS, 1, block)


def message_start(size: int, sent: bytes) -> bytes:
    """Returns the frame that begins a gRPC message of `size` bytes with `sent`."""
    return frame(_DATA, 0, 1, struct.pack(">BI", 0, size) + sent)


def read_end(connection: socket.socket) -> bytes:
    """Returns all frames that the server sends until stream 1, or the connection, ends.

    Raises:
      TimeoutError: it does not, in the time that the socket gives it.
    """
    received, start = b"", 0
    while True:
        while len(received) >= start + 9:
            size = int.from_bytes(received[start : start + 3], "big")
            kind, flags, stream = struct.unpack(">BBI", received[start + 3 : start + 9])
            if len(received) < start + 9 + size:
                break
            start += 9 + size
            if kind == _SETTINGS and not flags & _ACK:
                connection.sendall(frame(_SETTINGS, _ACK, 0, b""))
            if stream == 1 and (kind == _RST_STREAM or flags & _END_STREAM):
                return received
        data = connection.recv(65536)
        if not data:
            return received
        received += data
