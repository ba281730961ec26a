"""Traces that neither see nor drop what Dynamo has compiled in this process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._higher_order_ops.scan import scan

from slipway.export import export


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_a_loop_runs_along_any_dimension_whatever_was_traced_before(
    dimension: int, contiguous: bool
) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        def step(total: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            total = total / 2 + row
            return total, total * 1

        rest = [size for place, size in enumerate(x.shape) if place != dimension]
        if contiguous:
            totals = scan(step, torch.zeros(rest), x.movedim(dimension, 0).contiguous())[1]
        else:
            totals = scan(step, torch.zeros(rest), x, dim=dimension)[1]
        assert isinstance(totals, torch.Tensor)
        return totals

    symbols = {"a": (1, 9), "b": (1, 9), "c": (1, 9)}
    program = export(
        model, torch.randn(3, 4, 5), dynamic_shapes=("a, b, c",), symbols=symbols, batching=False
    )
    assert not program.contract.relations
    for shape in ((1, 1, 1), (1, 9, 2), (9, 1, 1), (2, 7, 9)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


def test_an_export_keeps_what_the_process_has_compiled() -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiled.append(graph)
        return graph.forward

    function = torch.compile(lambda x: x * 2, backend=backend)
    function(torch.ones(3))
    export(
        lambda x: torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)),
        torch.ones(3),
        dynamic_shapes={"x": "n"},
        symbols={"n": (0, 9)},
    )
    function(torch.ones(3))
    assert len(compiled) == 1
