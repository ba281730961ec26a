"""Ways to run the example models on a CPU, in one process, on one thread.

    bazel run //bench:engines

Eager, the graph in Python and in torch's interpreter (with its convolutions prepared, as servers
run it), compiled code, `torch.compile`, and for the convolutional network channels-last and
oneDNN's prepacked weights for all of it. Prints one JSON object: microseconds at batch 1 and 8, and
the largest difference from eager.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import torch
from torch.utils import mkldnn

from slipway.bench.compiled import model_of, program_path, row
from slipway.bench.measure import elapsed, interleave
from slipway.program import load
from slipway.program.compiled import use_compiled, use_graphs
from slipway.program.interpreter import use_interpreter

_ROUNDS = 21

_Run = Callable[[], torch.Tensor]


def _engines(name: str, batch: int) -> dict[str, _Run]:
    program = load(program_path(name))
    method = program.methods["forward"]
    use_compiled(program, program_path(name))
    code = method.engine
    assert code is not None
    use_graphs(program)
    model = model_of(name, dict(program.weights))
    inputs = [torch.cat([tensor] * batch) for tensor in row(name)]
    optimised = torch.compile(model, dynamic=True)
    served = load(program_path(name))
    use_interpreter(served)
    interpreter = served.methods["forward"].engine
    assert interpreter is not None
    engines: dict[str, _Run] = {
        "eager": lambda: model(*inputs),
        "graph": lambda: method.run(inputs)[0],
        "interpreter": lambda: interpreter.run(inputs)[0],
        "aot_inductor": lambda: code.run(inputs)[0],
        "torch.compile": lambda: optimised(*inputs),
    }
    if name == "resnet":
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        packed = mkldnn.to_mkldnn(copy.deepcopy(model))  # type: ignore[no-untyped-call]

        def channels_last() -> torch.Tensor:
            result: torch.Tensor = last(inputs[0].contiguous(memory_format=torch.channels_last))
            return result

        def prepacked() -> torch.Tensor:
            result: torch.Tensor = packed(inputs[0].to_mkldnn())
            return result.to_dense() if result.is_mkldnn else result

        engines |= {"channels_last": channels_last, "onednn_prepacked": prepacked}
    return engines


def _measure(name: str, batch: int) -> dict[str, dict[str, float]]:
    engines = _engines(name, batch)
    expected = engines["eager"]()
    figures: dict[str, dict[str, float]] = {}
    for engine, run in list(engines.items()):
        try:
            gap = (run() - expected).abs().max().item()
        except Exception as error:
            print(f"{name}: {engine} does not run: {type(error).__name__}: {str(error)[:200]}")
            del engines[engine]
            continue
        figures[engine] = {"largest_difference": float(f"{gap:.1e}")}

    def timed(run: _Run) -> Callable[[], float]:
        return lambda: elapsed(run) * 1e6

    medians = interleave(
        {engine: timed(run) for engine, run in engines.items()}, rounds=_ROUNDS, warm_up=3
    )
    for engine, value in medians.items():
        figures[engine]["us"] = round(value, 1)
    return figures


def main() -> None:
    torch.set_num_threads(1)
    figures = {}
    with torch.inference_mode():
        for name in ("mlp", "resnet", "encoder"):
            for batch in (1, 8):
                figures[f"{name} batch {batch}"] = _measure(name, batch)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
