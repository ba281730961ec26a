"""Other servers, with the same models, as //bench:serve compares with them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slipway.bench.http2_client import framed
from slipway.bench.load_generator import Target
from slipway.bench.server_process import ServerProcess
from slipway.bench.subjects import INFER, Arrays, first_output, infer_message

__all__ = ["Peer", "start"]


@dataclass(frozen=True)
class Dialect:
    """How a server is spoken to: the method, and what goes in and out."""

    path: str
    encode: Callable[[str, Arrays], bytes]
    decode: Callable[[bytes], NDArray[np.float32]]


@dataclass(frozen=True)
class Peer:
    """A server that runs."""

    name: str
    target: Target
    dialect: Dialect


def start(
    stack: contextlib.ExitStack, directory: Path, models: Path, threads: int
) -> Sequence[Peer]:
    """Starts the servers that are installed; `stack` stops them.

    Args:
      stack: is entered for each.
      directory: as bench/peer_servers/set_up.py left it.
      models: a folder of NAME.pt, TorchScript.
      threads: of each server's computation.
    """
    servers = Path(__file__).absolute().parent / "peer_servers"
    # Our own packages, and how Bazel starts Python, must not reach other environments.
    ours = ("PYTHON", "RUNFILES")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environment["OMP_NUM_THREADS"] = str(threads)
    peers = []
    for name, dialect in _DIALECTS.items():
        python = Path(os.environ.get("BUILD_WORKING_DIRECTORY", ""), directory, name, "bin/python")
        if not python.exists():
            continue
        command = [str(python.absolute()), str(servers / f"{name}_server.py"), str(models)]
        command += [str(_free_port()), str(threads)]
        try:
            process = ServerProcess(command, environment, prefix="ready ", seconds=180)
        except RuntimeError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        target = Target(stack.enter_context(process).address, dialect.path)
        peers.append(Peer(name, target, dialect))
    return peers


def _open_inference(model: str, arrays: Arrays) -> bytes:
    return framed(infer_message(model, arrays))


def _predictions_request(model: str, arrays: Arrays) -> bytes:
    """Returns TorchServe's PredictionsRequest {model_name = 1, map<string, bytes> input = 3}."""
    message = _field(1, model.encode())
    for name, array in arrays.items():
        message += _field(3, _field(1, name.encode()) + _field(2, array.tobytes()))
    return framed(message)


def _prediction(message: bytes) -> NDArray[np.float32]:
    """Returns the floats in TorchServe's PredictionResponse {prediction = 1}."""
    size, place, shift = 0, 1, 0
    while True:
        size |= (message[place] & 127) << shift
        place, shift = place + 1, shift + 7
        if message[place - 1] < 128:
            return np.frombuffer(message[place : place + size], np.float32)


def _field(number: int, value: bytes) -> bytes:
    """Returns a field of protobuf's that is bytes."""
    size, length = len(value), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes((number << 3 | 2,)) + bytes(length) + bytes((size,)) + value


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


_OPEN_INFERENCE = Dialect(INFER, _open_inference, first_output)
_DIALECTS = {
    "kserve": _OPEN_INFERENCE,
    "mlserver": _OPEN_INFERENCE,
    "pytriton": _OPEN_INFERENCE,
    "torchserve": Dialect(
        "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
        _predictions_request,
        _prediction,
    ),
}
