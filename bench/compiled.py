"""Compiled programs against their graphs and the eager models they come from, at batch 1.

    bazel run //bench:compiled

One process, one thread, interleaved. It also compiles the MLP once more, in another folder, and
compares the bytes. Prints one JSON object: for each model the medians in microseconds, how many
times as fast as the graph and as eager `torch.inference_mode` compiled code is, and milliseconds
to load compiled code, after the program itself. The graph runs in Python; beside it is what it
takes in torch's interpreter, as servers run it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from runfiles import Runfiles

from examples.encoder import model as encoder
from examples.mlp import model as mlp
from examples.resnet import model as resnet
from slipway.bench.measure import elapsed, interleave
from slipway.export import ExportSpec
from slipway.export.compilation import compile_program
from slipway.program import load
from slipway.program.cases import AnsweredCase
from slipway.program.compiled import use_compiled
from slipway.program.engine import Engine
from slipway.program.interpreter import use_interpreter

_ROUNDS = 51
_SPECS: dict[str, Callable[[], ExportSpec]] = {
    "mlp": mlp.export_spec,
    "resnet": resnet.export_spec,
    "encoder": encoder.export_spec,
}


def program_path(name: str) -> Path:
    """Returns the directory of a compiled program that Bazel built."""
    runfiles = Runfiles.Create()
    path = None if runfiles is None else runfiles.Rlocation(f"slipway/bench/{name}.program")
    if path is None:
        raise SystemExit("start it with `bazel run //bench:compiled`")
    return Path(path)


def model_of(name: str, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Returns the eager model of an example, with a program's weights."""
    model = _SPECS[name]().model
    assert isinstance(model, torch.nn.Module)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def row(name: str) -> list[torch.Tensor]:
    """Returns inputs for one row, from the program's first case."""
    program = load(program_path(name))
    case = next(item for item in program.cases if isinstance(item, AnsweredCase))
    return [case.inputs[key][:1].clone() for key in program.contract.tensor_inputs]


def _speeds(name: str) -> tuple[dict[str, float], float]:
    program = load(program_path(name))
    load_ms = elapsed(lambda: use_compiled(program, program_path(name))) * 1e3
    method = program.methods["forward"]
    code = method.engine
    model = model_of(name, dict(program.weights))
    inputs = row(name)
    repeats = 20 if name != "resnet" else 1

    def measure(run: Callable[[], object]) -> Callable[[], float]:
        def once() -> float:
            return elapsed(lambda: [run() for _ in range(repeats)]) / repeats * 1e6

        return once

    use_interpreter(program)
    interpreter = method.engine

    def run(engine: Engine | None) -> object:
        method.use(engine)
        return method.run(inputs)

    with torch.inference_mode():
        medians = interleave(
            {
                "eager_us": measure(lambda: model(*inputs)),
                "graph_us": measure(lambda: run(None)),
                "interpreter_us": measure(lambda: run(interpreter)),
                "compiled_us": measure(lambda: run(code)),
            },
            rounds=_ROUNDS,
            warm_up=3,
        )
    figures = {key: round(value, 1) for key, value in medians.items()}
    figures["speedup"] = round(medians["graph_us"] / medians["compiled_us"], 2)
    figures["speedup_over_eager"] = round(medians["eager_us"] / medians["compiled_us"], 2)
    return figures, load_ms


def _is_reproducible() -> bool:
    compiler = shutil.which("g++")
    if compiler is None:
        raise SystemExit("there is no g++ on the PATH")
    built = program_path("mlp")
    with tempfile.TemporaryDirectory(prefix="elsewhere") as folder:
        output = Path(folder, "program")
        compile_program(load(built), output, compiler=Path(compiler), work=Path(folder, "work"))
        return all(
            path.read_bytes() == (built / path.relative_to(output)).read_bytes()
            for path in output.rglob("*")
            if path.is_file()
        )


def main() -> None:
    torch.set_num_threads(1)
    figures: dict[str, object] = {}
    load_ms = {}
    for name in _SPECS:
        # The first load of a process, and the only one that the system's loader has work with.
        figures[name], load_ms[name] = _speeds(name)
        load_ms[name] = round(load_ms[name], 2)
    figures["load_ms"] = load_ms
    figures["reproducible"] = _is_reproducible()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
