"""Whether a condition holds for all that is declared is found out fast."""

from __future__ import annotations

import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, Mod

from slipway.export.narrowing import Verdict, examine
from slipway.export.symbolic import to_condition
from slipway.program import expressions
from slipway.program.contract import Symbol
from slipway.program.expressions import Condition


def test_a_condition_is_compiled_once_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    compile_condition = expressions.compile_condition

    def count(condition: Condition) -> object:
        compiled.append(condition)
        return compile_condition(condition)

    monkeypatch.setattr(expressions, "compile_condition", count)
    size = sympy.Symbol("size", integer=True)
    condition = sympy.Eq(Mod(FloorDiv(size, 4), 2), 0)
    needed, stated = (
        to_condition(item, {size: 0}) for item in (condition, sympy.Eq(Mod(size, 8), 0))
    )
    symbols = (Symbol("size", 8, 4000),)
    always = examine(condition, needed, symbols, {size: 0}, [stated])
    assert (always.kind, compiled) == (Verdict.Kind.ALWAYS, [stated, needed])
    sometimes = examine(condition, needed, symbols, {size: 0})
    assert sometimes == Verdict(Verdict.Kind.NOT_ALWAYS, (12,))
