"""The check of a contract, against torch's own check of the same guards on the same shapes.

    bazel run //bench:contract

The contract has two inputs and three relations. Ours also checks every dtype, rank and static size,
which torch leaves out. Prints one JSON object: microseconds for each, torch's guards alone, and the
ratio of torch's whole check to ours.
"""

from __future__ import annotations

import timeit

import torch

from slipway.bench.measure import interleave, print_figures
from slipway.export import Dim, export
from slipway.program import ScalarType

_CALLS = 20_000


def _model(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Relies on three relations between the sizes of its inputs."""
    rows, columns = left.shape[:2]
    if rows % 8 == 0 and rows <= 2 * right.shape[0] and columns < right.shape[0]:
        return left.sum() + right.sum()
    return left.sum() - right.sum()


def main() -> None:
    arguments = (torch.ones(16, 5, 3), torch.ones(12, 7))
    dynamic = {"left": {0: Dim.AUTO, 1: Dim.AUTO}, "right": {0: Dim.AUTO}}
    contract = export(_model, arguments, dynamic_shapes=dynamic).contract
    assert len(contract.relations) == 3, contract.relations

    module = torch.nn.Module()
    module.forward = _model
    exported = torch.export.export(module, arguments, dynamic_shapes=dynamic).module()
    # What torch does before the graph runs: a hook that looks at the structure of the call, and the
    # guards, which the graph calls.
    structure = [
        hook for hook in exported._forward_pre_hooks.values() if "input_constraints" in str(hook)
    ]
    guards = exported._guards_fn
    assert structure, "torch checks the structure of a call elsewhere now"

    def torch_check() -> None:
        structure[0](exported, arguments, {})
        guards(*arguments)

    request = {
        "left": (ScalarType.FLOAT32, (16, 5, 3)),
        "right": (ScalarType.FLOAT32, (12, 7)),
    }

    def microseconds(statement: object) -> float:
        return timeit.timeit(statement, number=_CALLS) / _CALLS * 1e6  # type: ignore[arg-type]

    medians = interleave(
        {
            "ours_us": lambda: microseconds(lambda: contract.check(request)),
            "torch_us": lambda: microseconds(torch_check),
            "torch_guards_alone_us": lambda: microseconds(lambda: guards(*arguments)),
        },
        rounds=9,
    )
    print_figures(medians | {"ratio": medians["torch_us"] / medians["ours_us"]})


if __name__ == "__main__":
    main()
