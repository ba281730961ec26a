"""Calls programs in a process of its own, for benchmarks: their outputs, and how fast they are.

Usage: compute_worker.py REPOSITORY THREADS DEVICE

Reads one JSON object a line and answers each with one:
{"expected": MODEL, "to": FILE}                    writes the outputs for `subjects.inputs`: {}
{"script": MODEL, "to": FILE}                      writes the eager model as TorchScript: {}
{"time": MODEL, "batch": N, "window": W, "callers": C, "seconds": S}
    calls batches of N for about S seconds from C threads at once, each with its share of THREADS.
    Batches are made of W requests at a time, the shortest first, padded to the longest of each:
    {"rate": rows a second, "p50_ms": of a call}
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from examples.encoder import model as encoder
from examples.mlp import model as mlp
from examples.resnet import model as resnet
from slipway.bench.subjects import SUBJECTS, inputs
from slipway.program import load


class _Model:
    def __init__(self, directory: Path, name: str, device: str) -> None:
        self._device = device
        self._program = load(directory, device)
        self._calls = [
            [torch.from_numpy(array) for array in arrays.values()] for arrays in inputs(name)
        ]

    def expected(self) -> list[Any]:
        with torch.inference_mode():
            return [self._call(call).numpy() for call in self._calls]

    def _call(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        output: torch.Tensor = self._program(*(tensor.to(self._device) for tensor in tensors))
        return output.cpu()

    def time(
        self, batch: int, window: int, callers: int, threads: int, seconds: float
    ) -> dict[str, float]:
        batches = []
        for start in range(0, max(len(self._calls), window), window):
            calls = [self._calls[k % len(self._calls)] for k in range(start, start + window)]
            calls.sort(key=lambda call: call[0].numel())
            for first in range(0, window, batch):
                rows = calls[first : first + batch]
                batches.append([_padded(parts) for parts in zip(*rows, strict=True)])

        @torch.inference_mode()
        def run() -> list[float]:
            torch.set_num_threads(max(1, threads // callers))
            self._call(batches[0])
            durations: list[float] = []
            end = time.perf_counter() + seconds
            # Whole rounds, as the calls differ in size.
            while not durations or time.perf_counter() < end:
                for call in batches:
                    start = time.perf_counter()
                    self._call(call)
                    durations.append(time.perf_counter() - start)
            return durations

        with ThreadPoolExecutor(callers) as pool:
            found = [future.result() for future in [pool.submit(run) for _ in range(callers)]]
        rows = sum(len(call[0]) for call in batches) / len(batches)
        rate = sum(rows * len(durations) / sum(durations) for durations in found)
        return {"rate": rate, "p50_ms": statistics.median(itertools.chain(*found)) * 1e3}


def _padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns a batch, with zeros where a row is shorter than the longest."""
    if len({row.shape for row in rows}) == 1:
        return torch.cat(list(rows))
    length = max(row.shape[1] for row in rows)
    return torch.cat([functional.pad(row, (0, length - row.shape[1])) for row in rows])


def _script(name: str, to: str) -> None:
    build = {"encoder": encoder, "mlp": mlp, "resnet": resnet}[name].build_model
    example = [torch.from_numpy(array) for array in inputs(name)[0].values()]
    with torch.no_grad():
        torch.jit.trace(build(), example).save(to)  # type: ignore[no-untyped-call]


def main() -> None:
    repository, threads, device = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # A thread that divides operators keeps helpers for good, and with more of them than processors
    # OpenMP makes all slow: only the callers' threads, which end, may have some.
    torch.set_num_threads(1)
    models = {name: _Model(repository / name / "1", name, device) for name in SUBJECTS}
    for line in sys.stdin:
        task = json.loads(line)
        answer: dict[str, float] = {}
        if "expected" in task:
            np.savez(task["to"], *models[task["expected"]].expected())
        elif "script" in task:
            _script(task["script"], task["to"])
        else:
            answer = models[task["time"]].time(
                task["batch"], task["window"], task["callers"], threads, task["seconds"]
            )
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
