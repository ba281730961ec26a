"""The example programs as benchmarks call them: requests, and the answers to them.

mlp      features (1, 256)
resnet   image (1, 3, 224, 224)
encoder  tokens and mask (1, seq), seq anywhere in 16..128
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slipway.bench.http2_client import OK, Reply, framed
from slipway.bench.load_generator import Request
from slipway.bench.server_process import Worker
from slipway.proto import open_inference_pb2 as protocol

__all__ = [
    "INFER",
    "SUBJECTS",
    "Arrays",
    "expected_outputs",
    "first_output",
    "infer_message",
    "inputs",
    "refused",
    "requests",
]

Arrays = Mapping[str, NDArray[np.generic]]
"""The inputs of a call, by name, in the model's order."""

INFER = "/inference.GRPCInferenceService/ModelInfer"
SUBJECTS = ("mlp", "resnet", "encoder")

_TOLERANCE = 1e-4
_INVALID_ARGUMENT = 3
_DATATYPES = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}


def inputs(subject: str) -> list[Arrays]:
    """Returns the calls of a subject, always the same: each a batch of one."""
    random = np.random.default_rng(6)
    if subject == "mlp":
        return [{"features": random.standard_normal((1, 256), dtype=np.float32)} for _ in range(32)]
    if subject == "resnet":
        return [
            {"image": random.standard_normal((1, 3, 224, 224), dtype=np.float32)} for _ in range(8)
        ]
    lengths = [*random.integers(16, 129, 30), 16, 128]
    return [
        {
            "tokens": random.integers(0, 1000, (1, length), dtype=np.int64),
            "mask": np.ones((1, length), np.bool_),
        }
        for length in random.permutation(lengths)
    ]


def expected_outputs(worker: Worker, subject: str) -> list[NDArray[np.float32]]:
    """Returns the program's output for each of `inputs`, as a compute_worker has it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "expected.npz")
        worker.ask(expected=subject, to=str(file))
        with np.load(file) as arrays:
            return [arrays[name] for name in arrays.files]


def infer_message(model: str, arrays: Arrays) -> bytes:
    """Returns a ModelInferRequest with raw contents."""
    request = protocol.ModelInferRequest(model_name=model)
    for name, array in arrays.items():
        request.inputs.add(name=name, datatype=_DATATYPES[array.dtype.name], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request.SerializeToString()


def requests(
    subject: str,
    calls: Sequence[Arrays],
    expected: Sequence[NDArray[np.float32]],
    encode: Callable[[str, Arrays], bytes] = lambda model, arrays: framed(
        infer_message(model, arrays)
    ),
    decode: Callable[[bytes], NDArray[np.float32]] | None = None,
) -> list[Request]:
    """Returns calls as what to send, each of which accepts its own answer alone.

    Args:
      subject: the model's name.
      calls: its inputs.
      expected: the model's output for each of them.
      encode: gives a request's bytes, as the connection sends them.
      decode: gives the output in a response's bytes.
    """
    return [
        Request(encode(subject, call), _Answer(output, decode or first_output))
        for call, output in zip(calls, expected, strict=True)
    ]


def refused(reply: Reply) -> bool:
    """Returns whether a reply is what a request that is wrong must get."""
    return reply.status == _INVALID_ARGUMENT


def first_output(message: bytes) -> NDArray[np.float32]:
    """Returns the first output of a ModelInferResponse, flat."""
    response = protocol.ModelInferResponse.FromString(message)
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[0], np.float32)
    return np.array(response.outputs[0].contents.fp32_contents, np.float32)


class _Answer:
    """Accepts one output. What was found right once is not decoded again."""

    def __init__(
        self, output: NDArray[np.float32], decode: Callable[[bytes], NDArray[np.float32]]
    ) -> None:
        self._output = output.ravel()
        self._decode = decode
        self._right: set[bytes] = set()

    def __call__(self, reply: Reply) -> bool:
        if reply.status != OK:
            return False
        if reply.message in self._right:
            return True
        found = self._decode(reply.message)
        right = found.shape == self._output.shape and np.allclose(
            found, self._output, rtol=_TOLERANCE, atol=_TOLERANCE
        )
        if right and len(self._right) < 1000:
            self._right.add(reply.message)
        return right
