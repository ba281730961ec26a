"""Serves the three example programs and calls them: with shapes that are legal, and not.

    bazel run //examples:quickstart

Starts the server on a free port of the loopback, compares every answer with the model run eagerly
in this process, prints each refusal, and stops the server. Exits 0 only if every legal request
matched eager within 1e-4 and every illegal one was refused with INVALID_ARGUMENT.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import tritonclient.grpc as triton
from runfiles import Runfiles
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from examples.encoder import model as encoder
from examples.mlp import model as mlp
from examples.resnet import model as resnet

_TOLERANCE = 1e-4

_Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Example:
    """A served model: its name, its output, how to run it eagerly, and calls to make."""

    name: str
    output: str
    eager: Callable[..., torch.Tensor]
    legal: Sequence[_Arrays]
    illegal: Sequence[_Arrays]


def _examples() -> Iterator[_Example]:
    random = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    def tokens(*shape: int) -> np.ndarray:
        return random.integers(0, 1000, shape, dtype=np.int64)

    def mask(*shape: int) -> np.ndarray:
        # Sequences of different lengths, padded on the right.
        lengths = random.integers(1, shape[1] + 1, shape[0]) if min(shape) else np.zeros(shape[0])
        return np.arange(shape[1]) < lengths[:, None]

    yield _Example(
        name="mlp",
        output="scores",
        eager=mlp.build_model(),
        legal=[{"features": floats(batch, 256)} for batch in (1, 2, 17, 64)],
        illegal=[
            {"features": floats(65, 256)},
            {"features": floats(0, 256)},
            {"features": floats(4, 255)},
            {"features": floats(256)},
            {"features": floats(4, 256).astype(np.float64)},
        ],
    )
    yield _Example(
        name="resnet",
        output="logits",
        eager=resnet.build_model(),
        legal=[
            {"image": floats(*shape)}
            for shape in [(1, 3, 32, 32), (2, 3, 64, 96), (5, 3, 224, 224), (16, 3, 32, 256)]
        ],
        illegal=[
            {"image": floats(*shape)}
            for shape in [(1, 3, 224, 220), (1, 3, 288, 32), (1, 1, 64, 64), (17, 3, 33, 32)]
        ],
    )
    yield _Example(
        name="encoder",
        output="embedding",
        eager=encoder.build_model(),
        legal=[
            {"tokens": tokens(*shape), "mask": mask(*shape)}
            for shape in [(1, 2), (3, 12), (8, 77), (32, 128)]
        ],
        illegal=[
            {"tokens": tokens(3, 12), "mask": mask(3, 11)},
            {"tokens": tokens(3, 12), "mask": mask(2, 12)},
            {"tokens": tokens(2, 129), "mask": mask(2, 129)},
            {"tokens": tokens(3, 12)},
        ],
    )


def _infer(client: triton.InferenceServerClient, example: _Example, arrays: _Arrays) -> np.ndarray:
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    result: np.ndarray = client.infer(example.name, inputs).as_numpy(example.output)
    return result


def _shapes(arrays: _Arrays) -> str:
    return " ".join(
        f"{name}={'x'.join(map(str, array.shape))}"
        + ("" if array.dtype in (np.float32, np.int64, np.bool_) else f":{array.dtype}")
        for name, array in arrays.items()
    )


def _difference(answer: np.ndarray, example: _Example, arrays: _Arrays) -> float:
    """Returns the largest difference from eager; NaN, which is within no tolerance, for a NaN."""
    with torch.inference_mode():
        expected = example.eager(*(torch.from_numpy(array) for array in arrays.values())).numpy()
    if answer.shape != expected.shape:
        return float("nan")
    return float(np.abs(answer - expected).max())


def _print_row(model: str, shapes: str, status: str, milliseconds: str, difference: str) -> None:
    print(f"{model:8} {shapes:36} {status:16} {milliseconds:>8} {difference:>10}")


def run(address: str) -> bool:
    """Makes every call, prints the table, and returns whether all went as it should.

    Args:
      address: HOST:PORT of the server.
    """
    answered = refused = programs = 0
    largest = 0.0
    as_expected = True
    refusals = []
    _print_row("model", "shapes", "status", "ms", "difference")
    with triton.InferenceServerClient(address) as client:
        for example in _examples():
            programs += 1
            calls = [(arrays, True) for arrays in example.legal]
            calls += [(arrays, False) for arrays in example.illegal]
            for arrays, legal in calls:
                start = time.perf_counter()
                try:
                    answer = _infer(client, example, arrays)
                    status, text = "OK", ""
                except InferenceServerException as error:
                    status, text = error.status().removeprefix("StatusCode."), error.message()
                milliseconds = f"{(time.perf_counter() - start) * 1e3:.1f}"
                difference = ""
                if status == "OK":
                    answered += 1
                    distance = _difference(answer, example, arrays)
                    difference = f"{distance:.1e}"
                    largest = max(largest, distance)
                    as_expected &= legal and distance <= _TOLERANCE
                else:
                    refused += status == "INVALID_ARGUMENT"
                    as_expected &= not legal and status == "INVALID_ARGUMENT"
                    refusals.append(f"{example.name} {_shapes(arrays)}\n    {text}")
                _print_row(example.name, _shapes(arrays), status, milliseconds, difference)
    print("\nrefusals:")
    for refusal in refusals:
        print(f"  {refusal}")
    print(
        f"\nquickstart: {programs} programs, {answered} answered, {refused} refused, "
        f"max difference {largest:.1e}"
    )
    return as_expected


def main() -> int:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    server = runfiles.Rlocation("slipway/examples/server")
    assert server is not None
    with subprocess.Popen(
        [server, "--host=127.0.0.1", "--port=0", "--log-level=warning"],
        env=runfiles.EnvVars(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            # The server prints one line when it is ready, and none if it cannot become so.
            ready = process.stdout.readline()
            if not ready:
                print("quickstart: the server did not start", file=sys.stderr)
                return 1
            print(ready.strip(), end="\n\n")
            as_expected = run(ready.split()[-1])
        finally:
            process.terminate()
    # Last on the terminal, the summary stays last: nothing is printed when all went well.
    if process.returncode:
        print(f"quickstart: the server ended with {process.returncode}", file=sys.stderr)
    return 0 if as_expected and process.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
