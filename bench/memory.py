"""How much memory a process with a large program has resident, against the program's weights.

    bazel run //bench:memory

Makes a program with 2 GB of weights in several files, in the folder for temporary files; loads it
in a fresh process, with every digest checked, and calls it once, so that each weight is read.
Prints one JSON object: megabytes (10^6 bytes) of weights, of the process's peak, which counts
mapped files as well as memory of its own (VmHWM), and of the process after its imports; and as
ratio what loading and calling added at most, divided by the weights.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import fx

from slipway.bench.measure import print_figures
from slipway.program import Contract, InputSpec, OutputSpec, Program, TensorSpec
from slipway.program.expressions import Constant
from slipway.program.graph_codec import OperatorTable, graph_to_proto
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

_WIDTH = 8192
_LAYERS = 8
_LAYER_BYTES = 4 * _WIDTH * _WIDTH
_SHARD_BYTES = 2 * _LAYER_BYTES

_MEASURE = """
import json, sys
import torch
from slipway.program import load

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

load  # what it needs is imported when it is first looked up
imported = resident("VmRSS:")
program = load(sys.argv[1])
with torch.no_grad():
    program(torch.ones(1, program.contract.tensor_inputs["x"].shape[1].value))
print(json.dumps({"peak": resident("VmHWM:"), "imported": imported}))
"""


def _write(directory: Path) -> None:
    """Writes a program of linear layers, one after the other."""
    graph = fx.Graph()
    names = [f"layers.{number}.weight" for number in range(_LAYERS)]
    placeholders = [graph.placeholder(f"weight_{number}") for number in range(_LAYERS)]
    value = graph.placeholder("x")
    inputs = {item.name: pb.GraphInput(weight=place) for place, item in enumerate(placeholders)}
    inputs[value.name] = pb.GraphInput(input=0)
    for weight in placeholders:
        value = graph.call_function(torch.ops.aten.linear.default, (value, weight))
    graph.output((value,))
    operators = OperatorTable.of_graphs([graph])
    message = graph_to_proto(graph, inputs, [value], operators)
    leaf = Tree(Kind.LEAF)
    row = TensorSpec(ScalarType.FLOAT32, (Constant(1), Constant(_WIDTH)))
    contract = Contract(
        method="forward",
        symbols=(),
        inputs=(InputSpec("x", tensor=row),),
        input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (leaf,)), Tree(Kind.DICT))),
        parameters=("x",),
        outputs=(OutputSpec("y", tensor=row),),
        output_tree=leaf,
    )
    program = Program(
        {"forward": contract},
        pb.ProgramGraph(operators=operators.to_proto(), methods=[message]),
        {name: torch.full((_WIDTH, _WIDTH), 1 / _WIDTH) for name in names},
        device=torch.device("cpu"),
    )
    program.save(directory, shard_bytes=_SHARD_BYTES)


def main() -> None:
    weights = _LAYERS * _LAYER_BYTES
    if shutil.disk_usage(tempfile.gettempdir()).free < 2 * weights:
        raise SystemExit(f"{tempfile.gettempdir()} has not {2 * weights} bytes free")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "large.program")
        _write(directory)
        result = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(directory)],
            env={"PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
        )
    if result.returncode:
        raise SystemExit(result.stderr)
    measured = json.loads(result.stdout)
    print_figures(
        {
            "weights_mb": weights / 1e6,
            "peak_rss_mb": measured["peak"] / 1e6,
            "ratio": (measured["peak"] - measured["imported"]) / weights,
            "import_rss_mb": measured["imported"] / 1e6,
        }
    )


if __name__ == "__main__":
    main()
