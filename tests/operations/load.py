"""Clients that ask a server again and again, and what became of every single request."""

from __future__ import annotations

import math
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

import grpc

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.datatypes import DATATYPES
from slipway.tests.serving.programs import AFFINE_WEIGHT

INFER = "/inference.GRPCInferenceService/ModelInfer"

TIMEOUT = 120.0
"""Seconds after which a request counts as lost; much longer than anything should take."""

_PAUSE = 0.002
"""Seconds between an answer and the client's next request."""

_ROW = (1.0, 2.0, 3.0, 4.0)
_ANSWER = [sum(w * x for w, x in zip(row, _ROW, strict=True)) for row in AFFINE_WEIGHT.tolist()]


def affine_request(identifier: str, rows: int = 1) -> protocol.ModelInferRequest:
    """Returns a request to `affine` with `rows` rows."""
    request = protocol.ModelInferRequest(
        model_name="affine",
        id=identifier,
        raw_input_contents=[struct.pack("<4f", *_ROW) * rows],
    )
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    return request


def power_request(size: int) -> protocol.ModelInferRequest:
    """Returns a request to `power`, which takes its time: some tenths of a second at 1024."""
    request = protocol.ModelInferRequest(
        model_name="power", raw_input_contents=[bytes(4 * size * size)]
    )
    request.inputs.add(name="x", datatype="FP32", shape=[size, size])
    return request


def echo_request(size: int) -> protocol.ModelInferRequest:
    """Returns a request to `echo` of `size` bytes, a multiple of 4, and as large an answer."""
    request = protocol.ModelInferRequest(model_name="echo")
    for name in DATATYPES:
        is_filled = name == "FP32"
        request.inputs.add(name=name.lower(), datatype=name, shape=[size // 4 if is_filled else 0])
        request.raw_input_contents.append(bytes(size if is_filled else 0))
    return request


def open_channel(address: str) -> grpc.Channel:
    """Returns a channel with a connection of its own."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
    return grpc.insecure_channel(address, options)


def infer(
    channel: grpc.Channel, request: protocol.ModelInferRequest, timeout: float = TIMEOUT
) -> protocol.ModelInferResponse:
    """Returns the response to a request. Raises: grpc.RpcError."""
    answer = channel.unary_unary(INFER)(request.SerializeToString(), timeout=timeout)
    return protocol.ModelInferResponse.FromString(answer)


def scale_of(response: protocol.ModelInferResponse, identifier: str, rows: int) -> float:
    """Returns by which scale `affine` answered.

    Raises:
      AssertionError: it is the answer to something else.
    """
    assert response.id == identifier, f"asked {identifier}, and got the answer to {response.id}"
    (content,) = response.raw_output_contents
    values = struct.unpack(f"<{3 * rows}f", content)
    scale = values[0] / _ANSWER[0]
    for index, value in enumerate(values):
        assert math.isclose(value, scale * _ANSWER[index % 3], rel_tol=1e-5), values
    return scale


class Load:
    """Clients of `affine`, each with a connection of its own, while a `with` block runs.

    Attributes:
      answered: requests that got a right answer.
      failed: those that got an error, by its code and text.
      lost: those that got neither an answer nor an error from the server or its connection.
      wrong: what was wrong with answers.
      versions: the answers by version and scale.
    """

    def __init__(self, address: str, clients: int = 4) -> None:
        self.answered = self.lost = 0
        self.failed: Counter[tuple[grpc.StatusCode, str]] = Counter()
        self.wrong: list[str] = []
        self.versions: Counter[tuple[str, float]] = Counter()
        self._address = address
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(index,), name=f"client {index}")
            for index in range(clients)
        ]

    @property
    def asked(self) -> int:
        """Returns how many requests have ended, in whichever way."""
        with self._lock:
            return self.answered + sum(self.failed.values()) + self.lost + len(self.wrong)

    @property
    def codes(self) -> set[grpc.StatusCode]:
        """Returns the codes of the errors."""
        with self._lock:
            return {code for code, _ in self.failed}

    def await_more(self, count: int = 20) -> None:
        """Waits until so many further requests were answered rightly. Raises: TimeoutError."""
        goal = self.answered + count
        wait_until(lambda: self.answered >= goal, f"{count} further answers; {self.summary()}")

    def summary(self) -> str:
        """Returns the counts, and what went wrong."""
        with self._lock:
            problems = [f"{code.name}: {text}" for code, text in self.failed][:3] + self.wrong[:3]
            return (
                f"{self.answered} answered, {sum(self.failed.values())} failed, {self.lost} lost, "
                f"{len(self.wrong)} wrong {problems or ''}"
            )

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: int) -> None:
        with open_channel(self._address) as channel:
            number = 0
            while not self._stop.wait(_PAUSE):
                number += 1
                self._ask_once(channel, f"{client}-{number}", rows=1 + number % 3)

    def _ask_once(self, channel: grpc.Channel, identifier: str, rows: int) -> None:
        try:
            response = infer(channel, affine_request(identifier, rows))
            scale = scale_of(response, identifier, rows)
        except grpc.RpcError as error:
            with self._lock:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self.lost += 1
                else:
                    self.failed[error.code(), error.details() or ""] += 1
        except AssertionError as error:
            with self._lock:
                self.wrong.append(str(error))
        else:
            with self._lock:
                self.answered += 1
                self.versions[response.model_version, round(scale, 3)] += 1


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    """Waits until a condition holds. Raises: TimeoutError, which says for `what`."""
    end = time.monotonic() + TIMEOUT
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {TIMEOUT:g} seconds for {what}")
        time.sleep(0.02)
