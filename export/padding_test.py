"""Whether inputs can be padded: kept where it makes no difference, and an error where it does."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from slipway.export import ExportError, ExportErrorKind, export
from slipway.program import Padding, Program

SYMBOLS = {"batch": (1, 8), "seq": (1, 32)}


class Embedder(nn.Module):
    """Takes indices (batch, seq) and a mask alike; gives the states and the mean of each row."""

    def __init__(self, *, careful: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.careful = careful

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states = self.embedding(tokens)
        scores = (states @ states.mT).masked_fill(~mask[:, None, :], -1e9)
        states = scores.softmax(-1) @ states
        if not self.careful:
            return states, states.mean(1)
        weights = mask[..., None].float()
        return states, (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def padded(values: dict[str, Any], *, careful: bool = True, **options: Any) -> Program:
    torch.manual_seed(0)
    return export(
        Embedder(careful=careful).eval(),
        (torch.randint(10, (2, 5)), torch.ones(2, 5, dtype=torch.bool)),
        dynamic_shapes=("batch, seq", "batch, seq"),
        symbols=SYMBOLS,
        padding=values,
        **options,
    )


def test_what_a_mask_leaves_out_can_be_padded() -> None:
    program = padded({"seq": {"mask": False, "tokens": 3}})
    batching = program.methods["forward"].batching
    assert batching is not None
    assert batching.paddings == (Padding("seq", {"tokens": 3, "mask": False}),)
    assert list(batching.paddings[0].values) == ["tokens", "mask"]


def test_an_integer_stands_for_a_fraction() -> None:
    program = export(
        lambda x: (x * 2, x.sum(1)),
        (torch.randn(2, 5),),
        dynamic_shapes=("batch, seq",),
        symbols=SYMBOLS,
        padding={"seq": {"x": 0}},
    )
    batching = program.methods["forward"].batching
    assert batching is not None
    (padding,) = batching.paddings
    assert repr(padding.values["x"]) == "0.0"


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        ({"seq": {"tokens": 0, "mask": True}}, {}, "'output_0' is not what it is without"),
        ({"seq": {"tokens": 0, "mask": False}}, {"careful": False}, "'output_1' is not what it is"),
        ({"seq": {"tokens": 10, "mask": False}}, {}, "it fails with IndexError"),
        ({"seq": {"tokens": 0}}, {}, "the inputs that have it are ['tokens', 'mask']"),
        ({"seq": {"tokens": 0, "mask": 0}}, {}, "'mask' is bool, which does not hold 0"),
        ({"seq": {"tokens": 0, "mask": False, "x": 1}}, {}, "values are given for"),
        ({"batch": {"tokens": 0, "mask": False}}, {}, "no symbol of the contract other than"),
        ({"length": {"tokens": 0, "mask": False}}, {}, "no symbol of the contract other than"),
        ({"seq": {"tokens": 0, "mask": False}}, {"batching": False}, "and forbids batching"),
    ],
)
def test_what_cannot_be_padded_is_an_error(
    values: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ExportError, match=re.escape(reason)) as caught:
        padded(values, **options)
    assert caught.value.kind is ExportErrorKind.INVALID_SPEC


def test_rows_that_depend_on_each_other_are_not_padded_either() -> None:
    with pytest.raises(ExportError, match="cannot be joined over 'batch'"):
        export(
            lambda x: x - x.mean(0),
            (torch.randn(2, 5),),
            dynamic_shapes=("batch, seq",),
            symbols=SYMBOLS,
            padding={"seq": {"x": 0}},
        )
    with pytest.raises(ExportError, match="no symbol is the first dimension"):
        export(
            lambda x: x.sum(),
            (torch.randn(2, 5),),
            dynamic_shapes=("batch, seq",),
            symbols=SYMBOLS,
            padding={"seq": {"x": 0}},
        )


def _total(x: torch.Tensor, *, together: float) -> torch.Tensor:
    """Sums what is positive, and something else where both values for padding occur."""
    both = (x == -1).any((1, 2)) & (x == -2).any((1, 2))
    return x.clamp(min=0).sum((1, 2)) + both * together


def grid(together: float) -> Program:
    return export(
        lambda x: _total(x, together=together),
        (torch.rand(2, 4, 5),),
        dynamic_shapes=("batch, rows, columns",),
        symbols={"batch": (1, 8), "rows": (1, 32), "columns": (1, 32)},
        padding={"rows": {"x": -1}, "columns": {"x": -2}},
    )


def test_several_symbols_can_be_padded_at_once() -> None:
    batching = grid(together=0).methods["forward"].batching
    assert batching is not None
    assert batching.paddings == (Padding("columns", {"x": -2.0}), Padding("rows", {"x": -1.0}))


def test_what_can_be_padded_along_one_symbol_or_another_but_not_both_is_an_error() -> None:
    with pytest.raises(ExportError, match="along 'columns' and 'rows' at once") as caught:
        grid(together=1)
    assert "where columns = 5 is padded to 6 and rows = 4 is padded to 5" in str(caught.value)


def test_inputs_that_are_too_large_to_try_are_not_padded() -> None:
    with pytest.raises(ExportError, match="there are no two sizes that could be tried"):
        export(
            lambda x: x * 2,
            (torch.randn(2, 5, 30_000),),
            dynamic_shapes=("batch, seq, 30000",),
            symbols=SYMBOLS,
            padding={"seq": {"x": 0}},
        )
