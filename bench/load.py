"""How long a program takes to load, against torch.export.load of the same model.

    bazel run //bench:load

From after `import torch` to a callable, in a fresh process each, with all further imports. Ours
checks digests. Prints one JSON object: for each model milliseconds for both, and the ratio.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from examples.encoder import model as encoder
from examples.resnet import model as resnet
from slipway.bench.measure import interleave
from slipway.export import export

_OURS = "from slipway.program import load; load(sys.argv[1])"
_TORCHS = "import torch.export; torch.export.load(sys.argv[1]).module()"

_MEASURE = """
import sys, time
import torch
start = time.perf_counter()
{statement}
print((time.perf_counter() - start) * 1e3)
"""

_ROUNDS = 7


def _models() -> dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...], dict[str, object]]]:
    """Returns each model with its example inputs and dynamic shapes."""
    deep = encoder.Encoder()
    deep.layers = torch.nn.ModuleList(encoder.EncoderLayer(64, heads=4) for _ in range(12))
    tokens = encoder.export_spec()
    image = resnet.export_spec()
    assert isinstance(image.args, torch.Tensor)
    assert isinstance(tokens.args, tuple)
    return {
        "encoder": (deep.eval(), tokens.args, tokens.dynamic_shapes),  # type: ignore[dict-item]
        "resnet": (resnet.ResNet18().eval(), (image.args,), image.dynamic_shapes),  # type: ignore[dict-item]
    }


def _milliseconds(statement: str, path: Path) -> Callable[[], float]:
    command = [sys.executable, "-c", _MEASURE.format(statement=statement), str(path)]
    environment = {"PYTHONPATH": ":".join(sys.path)}

    def measure() -> float:
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(result.stderr)
        return float(result.stdout)

    return measure


def main() -> None:
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, args, dynamic) in _models().items():
            ours, theirs = Path(folder, f"{name}.program"), Path(folder, f"{name}.pt2")
            export(model, args, dynamic_shapes=dynamic).save(ours)
            with torch.no_grad():
                automatic = {
                    key: dict.fromkeys(dimensions, torch.export.Dim.AUTO)
                    for key, dimensions in dynamic.items()  # type: ignore[call-overload]
                }
                torch.export.save(
                    torch.export.export(model, args, dynamic_shapes=automatic), theirs
                )
            medians = interleave(
                {"ours_ms": _milliseconds(_OURS, ours), "torch_ms": _milliseconds(_TORCHS, theirs)},
                rounds=_ROUNDS,
            )
            ratio = medians["torch_ms"] / medians["ours_ms"]
            figures[name] = {
                key: round(value, 1) for key, value in (medians | {"ratio": ratio}).items()
            }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
