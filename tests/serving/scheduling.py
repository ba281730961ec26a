"""Requests brought to a real scheduler, without a network between."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slipway.program import Method
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import ServingError
from slipway.serving.host import Host
from slipway.serving.loader import Loader
from slipway.serving.memory_budget import MemoryBudget
from slipway.serving.model import Environment, Model
from slipway.serving.observation import Metadata
from slipway.serving.processors import Processors
from slipway.serving.repository import Repository
from slipway.serving.request_queue import PendingRequest
from slipway.serving.request_reader import RequestReader
from slipway.serving.scheduler import SchedulingOptions
from slipway.tests.serving import programs

_WAIT_SECONDS = 30
"""How long what must happen may take on a machine that has much else to do."""

_thread_died = threading.Event()


class Answer:
    """A Reply that keeps what it is given, and may hold up the thread that gives it.

    Attributes:
      outputs: by name, once there is a response.
      error: once there is one.
      thread: who answered.
      entered: set when the answer has come.
    """

    method = "ModelInfer"
    metadata: Metadata = ()

    def __init__(self, *, is_held: bool = False) -> None:
        self.cancelled = False
        self.outputs: dict[str, np.ndarray[Any, Any]] = {}
        self.error: ServingError | None = None
        self.thread: threading.Thread | None = None
        self.entered = threading.Event()
        self._released = threading.Event()
        self._lock = threading.Lock()
        if not is_held:
            self._released.set()

    def respond(self, message: bytes) -> None:
        response = protocol.ModelInferResponse.FromString(message)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            dtype = np.dtype({"FP32": "float32", "INT64": "int64", "BOOL": "bool"}[output.datatype])
            self.outputs[output.name] = np.frombuffer(raw, dtype).reshape(output.shape)
        self._finish()

    def fail(self, error: ServingError) -> None:
        self.error = error
        self._finish()

    def release(self) -> None:
        """Lets go of the thread that answered or will."""
        self._released.set()

    def wait(self) -> None:
        wait_until(lambda: self.entered.wait(0.1), "an answer")

    def _finish(self) -> None:
        with self._lock:
            assert not self.entered.is_set(), "answered twice"
            self.thread = threading.current_thread()
            self.entered.set()
        assert self._released.wait(_WAIT_SECONDS)


class Bench:
    """A loaded repository, and a reader of requests for its models.

    Attributes:
      repository: with the models.
      reader: for one thread.
      memory: of all requests.
      arrivals: for somebody to bring requests between batches.
    """

    def __init__(self, root: Path, environment: Environment) -> None:
        """Loads affine, lookup and columns, which it writes if they are not there."""
        for write in (programs.write_affine, programs.write_lookup, programs.write_columns):
            directory = root / write.__name__.removeprefix("write_") / "1"
            if not directory.exists():
                write(directory)
        self.arrivals, self.memory = environment.arrivals, environment.memory
        self.repository = Repository(root)
        self._root, self._loader = root, Loader(Host(Processors(1)), environment)
        self.repository.update(self._loader)
        self.reader = RequestReader(self.repository)

    def replace_affine(self) -> None:
        """Loads another version of affine, which takes the place of the first."""
        programs.write_affine(self._root / "affine" / "2")
        self.repository.update(self._loader)

    def model(self, name: str) -> Model:
        return self.repository.find(name, "")

    def pending(
        self, message: bytes, answer: Answer, expires_in: float = float("inf")
    ) -> PendingRequest:
        arrived = time.monotonic()
        return PendingRequest(self.reader.read(message), answer, arrived, arrived + expires_in)

    def submit(
        self, message: bytes, answer: Answer | None = None, expires_in: float = float("inf")
    ) -> Answer:
        """Submits a request and returns where the answer goes; `run` runs it.

        Raises:
          ServingError: it is refused.
        """
        answer = answer or Answer()
        pending = self.pending(message, answer, expires_in)
        pending.request.plan.model.scheduler.submit(pending)
        return answer

    def run(self, name: str = "affine") -> None:
        while self.model(name).scheduler.run_pending():
            pass

    def settle(self, name: str = "affine", running: int = 0) -> None:
        """Waits until no more batches are run: what has answered may not have ended yet."""
        scheduler = self.model(name).scheduler
        wait_until(lambda: scheduler.running <= running, "the end of a batch")

    def occupy(self, name: str = "affine") -> Answer:
        """Keeps an instance busy until the answer that is returned is released."""
        answer = self.submit(small_request(name), Answer(is_held=True))
        self.run(name)
        answer.wait()
        return answer

    def close(self) -> None:
        """Has what was submitted answered, and ends the threads."""
        closing = threading.Thread(target=self.repository.close, daemon=True)
        closing.start()
        wait_until(lambda: not closing.is_alive(), "the end of the models' threads")


MakeBench = Callable[..., Bench]


@contextlib.contextmanager
def benches(root: Path) -> Iterator[MakeBench]:
    """Makes benches over one directory, and closes them: by then nothing may hold memory."""
    made: list[Bench] = []

    def make(
        memory: int = 2**40,
        on_device_failure: Callable[[], None] = lambda: None,
        **options: int | float,
    ) -> Bench:
        scheduling = SchedulingOptions(**options)  # type: ignore[arg-type]
        environment = Environment(scheduling, MemoryBudget(memory), on_device_failure)
        made.append(Bench(root, environment))
        return made[-1]

    usual = threading.excepthook

    def note(arguments: threading.ExceptHookArgs) -> None:
        _thread_died.set()
        usual(arguments)

    _thread_died.clear()
    threading.excepthook = note
    try:
        yield make
        for bench in made:
            bench.close()
            assert not bench.memory.used
    finally:
        threading.excepthook = usual


def wait_until(is_met: Callable[[], bool], what: str) -> None:
    """Waits for something that other threads do, as long as none of them has failed."""
    until = time.monotonic() + _WAIT_SECONDS
    while not is_met():
        assert not _thread_died.is_set(), f"waiting for {what}, and a thread has ended by an error"
        assert time.monotonic() < until, f"waited {_WAIT_SECONDS} seconds for {what}"
        time.sleep(1e-3)


def sizes(bench: Bench, name: str = "affine") -> dict[int, int]:
    """Returns how many batches of each size were run."""
    return dict(bench.model(name).statistics.batch_sizes())


def failures(bench: Bench, name: str = "affine") -> int:
    """Returns how many requests got no result."""
    return bench.model(name).statistics.to_proto(name, 1).inference_stats.fail.count


def finish(bench: Bench, busy: Answer, answers: Sequence[Answer], name: str = "affine") -> None:
    """Lets go of what keeps an instance busy, has all the others answered, and closes."""
    bench.run(name)
    busy.release()
    for answer in answers:
        answer.wait()
    bench.close()


def spend_processor(
    monkeypatch: pytest.MonkeyPatch, seconds: Callable[[torch.Tensor], float]
) -> None:
    """Has every model take as long for its first input, of a processor."""
    original = Method.run

    def run(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        # What only waited would be run by the thread that receives.
        end = time.thread_time() + seconds(tensors[0])
        while time.thread_time() < end:
            pass
        return original(self, tensors)

    monkeypatch.setattr(Method, "run", run)


def small_request(model: str) -> bytes:
    """Returns a request of one row."""
    match model:
        case "affine":
            return affine()
        case "columns":
            return columns()
        case _:
            return lookup()


def affine(value: float = 1.0, rows: int = 1, **parameters: int) -> bytes:
    """Returns a request to affine: every element is `value`."""
    request = protocol.ModelInferRequest(model_name="affine")
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    request.raw_input_contents.append(np.full((rows, 4), value, np.float32).tobytes())
    for name, number in parameters.items():
        request.parameters[name].int64_param = number
    return request.SerializeToString()


def columns(value: float = 1.0, rows: int = 1, **parameters: int) -> bytes:
    """Returns a request to columns: every element is `value`."""
    request = protocol.ModelInferRequest(model_name="columns")
    request.inputs.add(name="x", datatype="FP32", shape=[4, rows])
    request.raw_input_contents.append(np.full((4, rows), value, np.float32).tobytes())
    for name, number in parameters.items():
        request.parameters[name].int64_param = number
    return request.SerializeToString()


def lookup(tokens: Sequence[Sequence[int]] = ((0,),), **parameters: int) -> bytes:
    """Returns a request to lookup; the mask is true where the token is 1."""
    array = np.array(tokens, np.int64)
    request = protocol.ModelInferRequest(model_name="lookup")
    request.inputs.add(name="tokens", datatype="INT64", shape=array.shape)
    request.inputs.add(name="mask", datatype="BOOL", shape=array.shape)
    request.raw_input_contents.extend([array.tobytes(), (array == 1).tobytes()])
    for name, number in parameters.items():
        request.parameters[name].int64_param = number
    return request.SerializeToString()


def no_rows(length: int) -> bytes:
    """Returns a request to lookup that has no rows."""
    request = protocol.ModelInferRequest(model_name="lookup", raw_input_contents=[b"", b""])
    request.inputs.add(name="tokens", datatype="INT64", shape=[0, length])
    request.inputs.add(name="mask", datatype="BOOL", shape=[0, length])
    return request.SerializeToString()
