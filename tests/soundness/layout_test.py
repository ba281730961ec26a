from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slipway.export import Dim, ExportError, ExportErrorKind, export
from slipway.program import ContractViolation, load

Model = Callable[[torch.Tensor], torch.Tensor]


def _by_stride(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.stride(0) == x.shape[1] else x * 3


def _by_contiguity(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if (x + 1).is_contiguous() else x * 3


def _by_offset(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.storage_offset() == 0 else x * 3


def _in_a_branch(x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.cond(
        x.sum() > 0, lambda x: x * (2 if x.is_contiguous() else 3), lambda x: x + 1, (x,)
    )
    return result


def _by_way_of_an_alias(x: torch.Tensor) -> torch.Tensor:
    # An alias where x is contiguous, and a copy where it is not.
    y = x.contiguous()
    y.add_(1)
    return y * 1


def _indifferent(x: torch.Tensor) -> torch.Tensor:
    return (x @ x.t()).reshape(-1) + x.sum()


@pytest.mark.parametrize(
    ("model", "strict"),
    [
        *itertools.product(
            (_by_stride, _by_contiguity, _in_a_branch, _by_way_of_an_alias), (False, True)
        ),
        # Torch cannot interpret it in strict mode.
        (_by_offset, False),
    ],
)
def test_a_model_that_asks_requires_contiguous_tensors(
    model: Model, strict: bool, tmp_path: Path
) -> None:
    export(model, torch.ones(2, 2), strict=strict).save(tmp_path / "program")
    program = load(tmp_path / "program")
    assert program.contract.contiguous
    torch.testing.assert_close(program(torch.ones(2, 2)), model(torch.ones(2, 2)))
    for other in (torch.ones(2, 2).t(), torch.ones(3, 2)[1:], torch.ones(2, 4)[:, ::2]):
        with pytest.raises(ContractViolation, match="strides") as caught:
            program(other)
        assert [violation.code for violation in caught.value.violations] == ["layout"]


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_a_model_that_does_not_ask_takes_any(strict: bool) -> None:
    program = export(_indifferent, torch.ones(2, 2), strict=strict)
    assert not program.contract.contiguous
    x = torch.arange(4.0).reshape(2, 2).t()
    torch.testing.assert_close(program(x), _indifferent(x))


def test_a_model_that_fails_on_other_layouts_does_not_ask() -> None:
    assert not export(lambda x: x.view(-1), torch.ones(2, 2)).contract.contiguous


@pytest.mark.parametrize("shape", [(2, 5), (1, 5), (1, 1)], ids=str)
def test_an_example_whose_layout_says_nothing(shape: tuple[int, ...]) -> None:
    rows, columns = Dim("rows", min=1, max=6), Dim("columns", min=1, max=6)
    model = _by_way_of_an_alias
    program = export(model, torch.ones(shape), dynamic_shapes={"x": {0: rows, 1: columns}})
    assert program.contract.contiguous


def test_the_example_must_be_contiguous_too() -> None:
    with pytest.raises(ExportError, match="asks how a tensor lies in memory") as caught:
        export(_by_stride, torch.ones(3, 2).t())
    assert caught.value.kind is ExportErrorKind.INVALID_SPEC
    assert caught.value.source is not None
    assert "x.stride(0)" in caught.value.source.text
