from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from slipway.program import load
from slipway.program.interpreter import use_interpreter
from slipway.serving.value_reads import find_value_read
from slipway.tests.serving.programs import write_checked, write_lookup

_X = torch.arange(12.0).reshape(3, 4)
_MASK = torch.tensor([True, False, True])
_PLACES = torch.tensor([2, 0])


def _branch() -> object:
    return torch.cond(_X.sum() > 0, lambda x: x + 1, lambda x: x - 1, (_X,))


@pytest.mark.parametrize(
    ("call", "operator"),
    [
        (lambda: _X.sum().item(), "aten.item.default"),
        (lambda: _X.nonzero(), "aten.nonzero.default"),
        (lambda: _X[_MASK], "aten.index.Tensor"),
        (lambda: _X.index_put((_MASK,), _X[0]), "aten.index_put.default"),
        (lambda: torch.unique(_X), "aten._unique2.default"),
        (lambda: _X.exp().nonzero() + _X.sum().item(), "aten.nonzero.default"),
        (_branch, "cond"),
        # Operators that are made of such ones.
        (lambda: torch.where(_MASK), "aten.nonzero.default"),
        (lambda: _X.nonzero(as_tuple=True), "aten.nonzero.default"),
        (lambda: torch.linalg.inv(torch.eye(3)), "aten._linalg_check_errors.default"),
    ],
)
def test_finds_what_looks_at_values(call: Callable[[], object], operator: str) -> None:
    with torch.inference_mode():
        assert find_value_read(call) == operator


@pytest.mark.parametrize(
    "call",
    [
        lambda: (_X @ _X.T).softmax(-1),
        lambda: _X[_PLACES],
        lambda: _X[:, None, _PLACES],
        lambda: _X.index_put((_PLACES,), _X[:2]),
        lambda: _X.masked_fill(_MASK[:, None], 0.0),
        lambda: _X.topk(2),
        lambda: functional.scaled_dot_product_attention(_X[None], _X[None], _X[None]),
    ],
)
def test_other_calls_do_not(call: Callable[[], object]) -> None:
    with torch.inference_mode():
        assert find_value_read(call) is None


@pytest.mark.parametrize("is_interpreted", [False, True])
def test_looks_into_programs(tmp_path: Path, is_interpreted: bool) -> None:
    write_checked(tmp_path / "checked")
    write_lookup(tmp_path / "lookup")
    checked, lookup = load(tmp_path / "checked"), load(tmp_path / "lookup")
    if is_interpreted:
        use_interpreter(checked)
        assert not use_interpreter(lookup)
    inputs = [torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)]
    with torch.inference_mode():
        method = checked.methods["forward"]
        assert find_value_read(lambda: method.run([torch.ones(2, 4)])) is not None
        assert find_value_read(lambda: lookup.methods["forward"].run(inputs)) is None
