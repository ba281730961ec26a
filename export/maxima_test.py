"""The larger of two sizes is taken in place of their maximum where it is always the same one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from slipway.export import export
from slipway.program import Program


def exported(model: Callable[[torch.Tensor], torch.Tensor]) -> Program:
    return export(model, torch.ones(1, 50), dynamic_shapes=("1, n",), symbols={"n": (0, 100)})


@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [
        (3, 2, "(((n + 1) // 2 + 1) // 2 + 1) // 2"),
        (2, 2, "(((n + 1) // 2 + 1) // 2 + 1) // 2"),
        (7, 4, "(((n + 3) // 4 + 3) // 4 + 3) // 4"),
    ],
)
def test_sizes_stay_short_through_layers_that_pad_to_a_multiple_of_their_stride(
    kernel: int, stride: int, size: str
) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            length = x.shape[-1]
            missing = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
            x = functional.pad(x, [missing // 2, missing - missing // 2])
            x = functional.conv1d(x[None], torch.ones(1, 1, kernel), stride=stride)[0]
        return x

    program = export(model, torch.ones(1, 50), dynamic_shapes=("1, n",), symbols={"n": (1, 100)})
    assert program.contract.relations == ()
    assert str(program.contract.outputs[0].tensor) == f"float32[1, {size}]"
    for length in range(1, 101):
        x = torch.arange(length)[None].float()
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize(
    "larger",
    [
        lambda n: max(n, 1),
        lambda n: max(n // 2 + 3, n),
        lambda n: max(4 * (n // 8), n // 2),
        lambda n: max(4 * (n // 8) + 3, n // 2),
        lambda n: max(4 * (n // 8) + 2, n // 2),
        lambda n: max(2 * (n // 6), n // 3 - 1),
        lambda n: max(n // 2 - (n + 7) // 2, -4),
        lambda n: max(5 - n, 0),
        lambda n: abs(n - 40),
        lambda n: abs(-n // 3),
        lambda n: abs(n % 7 - n // 2 - 2),
    ],
)
def test_a_maximum_is_what_it_is(larger: Callable[[int], int]) -> None:
    program = exported(lambda x: x.new_ones(1) * larger(x.shape[1]))
    for length in range(101):
        assert program(torch.zeros(1, length)).item() == larger(length)
