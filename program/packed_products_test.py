from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from slipway.program.interpreter import InterpretedGraph
from slipway.program.packed_products import fill_vectors


def product(columns: int, dtype: torch.dtype) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """Returns the graph of a product with a weight of int8, and its operands."""
    generator = torch.Generator().manual_seed(0)
    operands = [
        torch.randint(-2, 3, (3, columns), generator=generator).to(dtype),
        torch.randint(-2, 3, (8, columns), generator=generator).to(torch.int8),
        torch.ones(8, dtype=dtype),
    ]
    # Traced without values, since torch would compute it.
    module = make_fx(
        lambda x, weight, scales: (torch._weight_int8pack_mm(x, weight, scales),),
        pre_dispatch=True,
        tracing_mode="fake",
    )(*operands)
    return module, operands


def is_filled(columns: int, weights: Mapping[int, torch.Tensor]) -> bool:
    module = product(columns, torch.float32)[0]
    return fill_vectors(module, weights) is not module


@pytest.mark.parametrize("columns", [1, 5, 16, 31, 32, 50])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_nothing_beyond_a_row_is_read(columns: int, dtype: torch.dtype) -> None:
    module, operands = product(columns, dtype)
    filled = fill_vectors(module, {})
    expected = operands[0].float() @ operands[1].float().t()
    for actual in (filled(*operands)[0], InterpretedGraph(filled.graph, {}).run(operands)[0]):
        assert actual.dtype is dtype
        torch.testing.assert_close(actual.float(), expected, rtol=1e-2, atol=0)


def test_weights_of_whole_vectors_are_left_alone() -> None:
    assert not is_filled(64, {1: torch.ones(8, 64, dtype=torch.int8)})
    assert is_filled(48, {1: torch.ones(8, 48, dtype=torch.int8)})
    assert is_filled(64, {})
