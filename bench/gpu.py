"""The example programs on a GPU, as a server runs them, against the eager models.

    bazel run --config=cuda //bench:gpu -- [--device cuda:0] [--seconds S] [--markdown FILE]

For each model and number of rows, the largest difference from the eager model on the device, and
calls a second: of the eager model, of the eager model in a CUDA graph, and of the program as a
server calls it, with and without CUDA graphs, from one thread and from two. Every call includes the
copies of its inputs to the device and of its outputs back. All are measured in turn. Prints one
JSON object; with --markdown, also writes a table with date, card and versions. On the CPU, which it
can be tried on, there are no CUDA graphs.

Without Bazel, where a GPU's machine has none: `python -m slipway.bench.gpu --repository DIR`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from examples.encoder import model as encoder
from examples.mlp import model as mlp
from examples.resnet import model as resnet
from slipway.bench.measure import interleave
from slipway.bench.server_process import example_repository
from slipway.bench.subjects import SUBJECTS, inputs
from slipway.program import load
from slipway.program.interpreter import use_interpreter
from slipway.serving.devices import Device, make_device, resolve_device
from slipway.serving.processors import Processors

_BUILDERS: dict[str, Callable[[], torch.nn.Module]] = {
    "encoder": encoder.build_model,
    "mlp": mlp.build_model,
    "resnet": resnet.build_model,
}
_ROWS = (1, 8, 32)
_ROUNDS = 5
_GRAPH_BYTES = 2**33

_Tensors = Sequence[torch.Tensor]
_Call = Callable[[_Tensors], list[torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--repository", type=Path, help="of the example programs")
    parser.add_argument("--markdown", type=Path, help="where to write a table")
    options = parser.parse_args()
    device = resolve_device(options.device)
    repository = options.repository or example_repository()
    figures = {
        f"{name} x {rows}": _measure(repository / name / "1", name, rows, device, options.seconds)
        for name in SUBJECTS
        for rows in _ROWS
    }
    if options.markdown is not None:
        options.markdown.write_text(_markdown(figures, device))
    print(json.dumps(figures))


def _measure(
    program: Path, name: str, rows: int, place: torch.device, seconds: float
) -> dict[str, float]:
    batch = _batch(name, rows)
    model = _BUILDERS[name]().eval().to(place)
    with torch.inference_mode():
        expected = _outputs(model(*(tensor.to(place) for tensor in batch)))
    devices = {"program": make_device(place, Processors(2))}
    if place.type == "cuda":
        devices["program, CUDA graph"] = make_device(place, Processors(2), _GRAPH_BYTES)
    calls = {key: _program_call(device, program) for key, device in devices.items()}
    gap = max(
        (actual - wanted.cpu()).abs().max().item()
        for call in calls.values()
        for _ in range(8)  # CUDA graphs are recorded after some
        for actual, wanted in zip(call(batch), expected, strict=True)
    )
    calls["eager"] = _eager_call(model, place)
    if place.type == "cuda":
        with torch.cuda.device(place):
            calls["eager, CUDA graph"] = _eager_graph_call(model, place, batch)
    subjects = {key: _rate(call, batch, 1, seconds) for key, call in calls.items()}
    for key in devices:
        subjects[f"{key}, 2 threads"] = _rate(calls[key], batch, 2, seconds)
    medians = interleave(subjects, rounds=_ROUNDS)
    return {"largest_difference": float(f"{gap:.1e}")} | {
        key: round(value, 1) for key, value in medians.items()
    }


def _batch(name: str, rows: int) -> list[torch.Tensor]:
    """Returns calls of a subject joined into one, all as long as the shortest of them."""
    arrays = inputs(name)
    calls = [arrays[row % len(arrays)] for row in range(rows)]
    if name == "encoder":
        length = min(array.shape[1] for call in calls for array in call.values())
        calls = [{key: array[:, :length] for key, array in call.items()} for call in calls]
    return [torch.cat([torch.from_numpy(call[key]) for call in calls]) for key in calls[0]]


def _program_call(device: Device, path: Path) -> _Call:
    program = load(path, device.torch_device)
    device.prepare(lambda: use_interpreter(program))
    method = program.methods["forward"]
    return lambda tensors: device.run(method, tensors)[0]


def _eager_call(model: torch.nn.Module, place: torch.device) -> _Call:
    @torch.inference_mode()
    def call(tensors: _Tensors) -> list[torch.Tensor]:
        if place.type == "cpu":
            return _outputs(model(*tensors))
        placed = [tensor.pin_memory().to(place, non_blocking=True) for tensor in tensors]
        return [output.cpu() for output in _outputs(model(*placed))]

    return call


def _eager_graph_call(model: torch.nn.Module, place: torch.device, batch: _Tensors) -> _Call:
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        given = [tensor.to(place) for tensor in batch]
        side = torch.cuda.Stream(place)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            for _ in range(3):
                model(*given)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            outputs = _outputs(model(*given))

    @torch.inference_mode()
    def call(tensors: _Tensors) -> list[torch.Tensor]:
        for place, tensor in zip(given, tensors, strict=True):
            place.copy_(tensor.pin_memory(), non_blocking=True)
        graph.replay()
        return [output.cpu() for output in outputs]

    return call


def _outputs(result: torch.Tensor | tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def _rate(call: _Call, batch: _Tensors, threads: int, seconds: float) -> Callable[[], float]:
    def run(_: int) -> float:
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            call(batch)
            count += 1
        return count / (time.perf_counter() - start)

    pool = ThreadPoolExecutor(threads)
    return lambda: sum(pool.map(run, range(threads)))


def _markdown(figures: dict[str, dict[str, float]], place: torch.device) -> str:
    columns = list(next(iter(figures.values())))
    card = platform.processor() or platform.machine()
    if place.type == "cuda":
        card = f"{torch.cuda.get_device_name(place)}, CUDA {torch.version.cuda}"
    lines = [
        "# The example programs on a device\n",
        f"{card}, torch {torch.__version__}, {datetime.date.today()}. Calls a second with the "
        "copies to the device and back, medians of runs in turn; the largest difference is from "
        "the eager model on the device. `bazel run --config=cuda //bench:gpu -- --markdown FILE` "
        "writes this.\n",
        f"| | {' | '.join(column.replace('_', ' ') for column in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, row in figures.items():
        values = " | ".join(f"{row[column]:,}" for column in columns)
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
