"""Decides whether a condition that tracing relied on holds for every shape that was declared."""

from __future__ import annotations

import enum
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import sympy
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from slipway.export.errors import ExportError, ExportErrorKind, SourceLine
from slipway.program.contract import Symbol
from slipway.program.expressions import (
    Comparison,
    Condition,
    Constant,
    Modulo,
    SymbolReference,
    holds,
    symbols_of,
)

__all__ = ["Verdict", "examine", "narrowing_error"]

_EXHAUSTIVE_POINTS = 1 << 16
"""Up to so many combinations of values, all are tried and the answer is a proof."""

_RANDOM_POINTS = 4096


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a condition holds throughout the declared ranges.

    Attributes:
      kind: ALWAYS is proven; USUALLY means that no counterexample was found.
      counterexample: the value of each symbol where it fails.
    """

    class Kind(enum.Enum):
        ALWAYS = "always"
        USUALLY = "usually"
        NOT_ALWAYS = "not always"

    kind: Kind
    counterexample: tuple[int, ...] | None = None


def examine(
    condition: sympy.Basic,
    converted: Condition,
    symbols: Sequence[Symbol],
    index: Mapping[sympy.Symbol, int],
    assumptions: Sequence[Condition] = (),
) -> Verdict:
    """Returns whether a condition holds for all declared values of the symbols.

    Args:
      condition: over `index`'s symbols.
      converted: the same in the contract's language.
      symbols: with their ranges.
      index: the position of each sympy symbol in `symbols`.
      assumptions: what else is declared of the symbols.
    """
    if condition == sympy.false:
        return Verdict(Verdict.Kind.NOT_ALWAYS, tuple(symbol.minimum for symbol in symbols))
    ranges = {
        symbol: ValueRanges(symbols[position].minimum, _upper(symbols[position]))
        for symbol, position in index.items()
    }
    if bound_sympy(condition, ranges) == ValueRanges(sympy.true, sympy.true):
        return Verdict(Verdict.Kind.ALWAYS)
    if converted in assumptions:
        return Verdict(Verdict.Kind.ALWAYS)
    mentioned = {item.index for item in symbols_of(converted)}
    relevant = [
        item for item in assumptions if mentioned & {symbol.index for symbol in symbols_of(item)}
    ]
    involved = sorted(mentioned.union(*({s.index for s in symbols_of(a)} for a in relevant)))
    values = [symbol.minimum for symbol in symbols]
    points, exhaustive = _points([symbols[position] for position in involved])
    for point in points:
        for position, value in zip(involved, point, strict=True):
            values[position] = value
        if all(holds(item, values) for item in relevant) and not holds(converted, values):
            return Verdict(Verdict.Kind.NOT_ALWAYS, tuple(values))
    return Verdict(Verdict.Kind.ALWAYS if exhaustive else Verdict.Kind.USUALLY)


def _upper(symbol: Symbol) -> sympy.Basic:
    return int_oo if symbol.maximum is None else sympy.Integer(symbol.maximum)


def _points(symbols: Sequence[Symbol]) -> tuple[Iterator[tuple[int, ...]], bool]:
    """Returns points of the symbols' ranges, and whether they are all there are."""
    count = 1
    for symbol in symbols:
        count *= _EXHAUSTIVE_POINTS + 1 if symbol.maximum is None else _width(symbol)
        count = min(count, _EXHAUSTIVE_POINTS + 1)
    if count <= _EXHAUSTIVE_POINTS:
        return itertools.product(*(range(s.minimum, s.minimum + _width(s)) for s in symbols)), True
    corners = [
        sorted(
            {min(s.minimum + step, s.minimum + _width(s) - 1) for step in (0, 1, 2, 3, 5, 7, 12)}
        )
        for s in symbols
    ]
    # Seeded, so that an export gives the same answer every time.
    source = random.Random(0)
    sampled = (
        tuple(s.minimum + source.randrange(_width(s)) for s in symbols)
        for _ in range(_RANDOM_POINTS)
    )
    some = itertools.islice(itertools.product(*corners), _EXHAUSTIVE_POINTS)
    return itertools.chain(some, sampled), False


def _width(symbol: Symbol) -> int:
    """Returns how many values a symbol has; of an unbounded one, as many as are worth trying."""
    return 1 << 20 if symbol.maximum is None else symbol.maximum - symbol.minimum + 1


def narrowing_error(
    condition: Condition,
    counterexample: Sequence[int],
    symbols: Sequence[Symbol],
    source: SourceLine | None,
) -> ExportError:
    """Returns the error for a model that needs more than was declared."""
    involved = sorted({item.index for item in symbols_of(condition)})
    declared = ", ".join(f"{symbols[i].name} in {symbols[i].allowed}" for i in involved)
    example = ", ".join(f"{symbols[i].name} = {counterexample[i]}" for i in involved)
    return ExportError(
        ExportErrorKind.CONSTRAINT_VIOLATION,
        f"declared is {declared or 'a contradiction'}, but the model needs {condition}, which "
        f"fails for {example or 'every value'}",
        _advice(condition, symbols),
        source,
    )


def _advice(condition: Condition, symbols: Sequence[Symbol]) -> str:
    match condition:
        case Comparison("==", Modulo(SymbolReference(_, name), Constant(divisor)), Constant(0)):
            return f"declare the dimension as {divisor}*k with k = Dim('k'), instead of {name}"
        case Comparison("!=", SymbolReference(index, name), Constant(value)) if (
            value == symbols[index].minimum
        ):
            return f"declare Dim('{name}', min={value + 1}, …)"
        case Comparison(">=", SymbolReference(_, name), Constant(value)):
            return f"declare Dim('{name}', min={value}, …)"
        case Comparison(">", SymbolReference(_, name), Constant(value)):
            return f"declare Dim('{name}', min={value + 1}, …)"
        case Comparison("<=", SymbolReference(_, name), Constant(value)):
            return f"declare Dim('{name}', max={value}, …)"
        case Comparison("<", SymbolReference(_, name), Constant(value)):
            return f"declare Dim('{name}', max={value - 1}, …)"
        case Comparison("==", SymbolReference(_, name), Constant(value)):
            return f"make the dimension static ({value}), or change the line that fixes {name}"
        case Comparison("==", SymbolReference(_, first), SymbolReference(_, second)):
            return f"use one Dim for both '{first}' and '{second}'"
        case _:
            return "declare the dimensions so that this always holds, or change the line"
