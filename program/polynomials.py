"""Expressions in a normal form, and the values that they can take: what can be known of all sizes.

Two expressions with the same normal form have the same value wherever both have one. A polynomial's
terms are products of atoms: symbols, and those divisions, minima and maxima that do not simplify.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from slipway.program.contract import Symbol
from slipway.program.expressions import (
    Add,
    All,
    AnyOf,
    Comparison,
    Condition,
    Constant,
    Expression,
    FloorDivide,
    Maximum,
    Minimum,
    Modulo,
    Multiply,
    Negation,
    SymbolReference,
)

__all__ = ["Interval", "Polynomial", "bounds", "divides_safely", "interval_of", "polynomial"]

_MAXIMUM_TERMS = 64
"""A product with more terms is an atom of its own, so that no expression can make this slow."""

Interval = tuple[float, float]
"""The lowest and the highest value, both included: integers, or infinities."""


@dataclass(frozen=True, slots=True)
class _Atom:
    """`kind` is `symbol`, `//`, `%`, `min`, `max` or `*`."""

    kind: str
    symbol: int = -1
    operands: tuple[Polynomial, ...] = ()

    @functools.cache  # noqa: B019  (processes that compare contracts are short)
    def key(self) -> str:
        """Returns what atoms are sorted by."""
        return repr(self)


_Monomial = tuple[_Atom, ...]


@dataclass(frozen=True, slots=True)
class Polynomial:
    """A sum of products of atoms, each with a factor that is not zero, in a fixed order."""

    terms: tuple[tuple[_Monomial, int], ...] = ()

    @property
    def constant(self) -> int | None:
        """Returns its value where that is the same for all sizes, else None."""
        if not self.terms:
            return 0
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0] else None

    @property
    def factors(self) -> list[int]:
        """Returns the factor of each term."""
        return [factor for _, factor in self.terms]

    def __add__(self, other: Polynomial) -> Polynomial:
        return _collected(self.terms + other.terms)

    def __neg__(self) -> Polynomial:
        return Polynomial(tuple((atoms, -factor) for atoms, factor in self.terms))

    def __sub__(self, other: Polynomial) -> Polynomial:
        return self + -other


def _collected(terms: Iterable[tuple[_Monomial, int]]) -> Polynomial:
    sums: dict[_Monomial, int] = {}
    for atoms, factor in terms:
        sums[atoms] = sums.get(atoms, 0) + factor
    kept = [(atoms, factor) for atoms, factor in sums.items() if factor]
    kept.sort(key=lambda term: [atom.key() for atom in term[0]])
    return Polynomial(tuple(kept))


def _constant(value: int) -> Polynomial:
    return Polynomial((((), value),) if value else ())


def _atom(kind: str, *operands: Polynomial, symbol: int = -1) -> Polynomial:
    return Polynomial((((_Atom(kind, symbol, operands),), 1),))


@functools.cache
def polynomial(expression: Expression) -> Polynomial:
    """Returns an expression's normal form. Raises: ValueError, for a size that depends on data."""
    match expression:
        case Constant(value):
            return _constant(value)
        case SymbolReference(index, _):
            return _atom("symbol", symbol=index)
        case Add(operands):
            return functools.reduce(lambda one, other: one + other, map(polynomial, operands))
        case Multiply(operands):
            return functools.reduce(_product, map(polynomial, operands))
        case FloorDivide(left, right):
            return _quotient(polynomial(left), polynomial(right))
        case Modulo(left, right):
            return _remainder(polynomial(left), polynomial(right))
        case Minimum(operands):
            return _extreme("min", map(polynomial, operands))
        case Maximum(operands):
            return _extreme("max", map(polynomial, operands))
        case _:
            raise ValueError("a size that depends on the inputs' values has no normal form")


def _product(one: Polynomial, other: Polynomial) -> Polynomial:
    if len(one.terms) * len(other.terms) > _MAXIMUM_TERMS:
        return _atom("*", *sorted((one, other), key=repr))
    return _collected(
        (tuple(sorted(first + second, key=_Atom.key)), a * b)
        for (first, a), (second, b) in itertools.product(one.terms, other.terms)
    )


def _split(dividend: Polynomial, divisor: int) -> tuple[Polynomial, Polynomial]:
    """Returns (q, r) with dividend = divisor*q + r, the factors of r being in 0..divisor-1."""
    return (
        Polynomial(tuple((atoms, f // divisor) for atoms, f in dividend.terms if f // divisor)),
        Polynomial(tuple((atoms, f % divisor) for atoms, f in dividend.terms if f % divisor)),
    )


def _quotient(dividend: Polynomial, divisor: Polynomial) -> Polynomial:
    value = divisor.constant
    if value is None or value <= 0:
        return _atom("//", dividend, divisor)
    whole, rest = _split(dividend, value)
    if rest.constant is not None:
        return whole + _constant(rest.constant // value)
    return whole + _atom("//", rest, divisor)


def _remainder(dividend: Polynomial, divisor: Polynomial) -> Polynomial:
    value = divisor.constant
    if value is None or value <= 0:
        return _atom("%", dividend, divisor)
    _, rest = _split(dividend, value)
    if rest.constant is not None:
        return _constant(rest.constant % value)
    return _atom("%", rest, divisor)


def _extreme(kind: str, operands: Iterable[Polynomial]) -> Polynomial:
    distinct = sorted(set(operands), key=repr)
    return distinct[0] if len(distinct) == 1 else _atom(kind, *distinct)


# What values are possible -------------------------------------------------------------------------


def interval_of(symbol: Symbol) -> Interval:
    """Returns the range of a symbol."""
    return symbol.minimum, math.inf if symbol.maximum is None else symbol.maximum


def bounds(value: Polynomial, ranges: Sequence[Interval]) -> Interval:
    """Returns an interval that every value lies in; it may be wider than it need be.

    Args:
      value: over symbols.
      ranges: of each symbol.
    """
    low: float = 0
    high: float = 0
    for atoms, factor in value.terms:
        term: Interval = (factor, factor)
        for atom in atoms:
            term = _times(term, _atom_bounds(atom, ranges))
        low, high = _plus(low, term[0]), _plus(high, term[1])
    return low, high


def _plus(one: float, other: float) -> float:
    # Not one + other: integers may be too large to be floats.
    if isinstance(one, float):
        return one
    return other if isinstance(other, float) else one + other


def _by(one: float, other: float) -> float:
    if one == 0 or other == 0:
        return 0
    if isinstance(one, float) or isinstance(other, float):
        return math.inf if (one > 0) == (other > 0) else -math.inf
    return one * other


def _times(one: Interval, other: Interval) -> Interval:
    corners = [_by(a, b) for a in one for b in other]
    return min(corners), max(corners)


def _atom_bounds(atom: _Atom, ranges: Sequence[Interval]) -> Interval:
    if atom.kind == "symbol":
        return ranges[atom.symbol]
    each = [bounds(operand, ranges) for operand in atom.operands]
    return _BOUNDS[atom.kind](each)


def _floor(value: float, divisor: float) -> float:
    if isinstance(value, float):
        return value
    if isinstance(divisor, float):
        return 0 if value >= 0 else -1
    return value // divisor


def _quotient_bounds(each: Sequence[Interval]) -> Interval:
    (low, high), divisor = each
    if divisor[0] <= 0:
        return -math.inf, math.inf
    return min(_floor(low, d) for d in divisor), max(_floor(high, d) for d in divisor)


def _remainder_bounds(each: Sequence[Interval]) -> Interval:
    (low, high), divisor = each
    if divisor[0] <= 0:
        return -math.inf, math.inf
    if low >= 0 and high < divisor[0]:
        return low, high
    return 0, _plus(divisor[1], -1)


_BOUNDS: Mapping[str, Callable[[Sequence[Interval]], Interval]] = {
    "*": lambda each: functools.reduce(_times, each),
    "//": _quotient_bounds,
    "%": _remainder_bounds,
    "min": lambda each: (min(low for low, _ in each), min(high for _, high in each)),
    "max": lambda each: (max(low for low, _ in each), max(high for _, high in each)),
}


def divides_safely(node: Expression | Condition, ranges: Sequence[Interval]) -> bool:
    """Returns whether nothing below `node` can divide by zero for symbols in these ranges."""
    match node:
        case FloorDivide(left, right) | Modulo(left, right):
            low, high = bounds(polynomial(right), ranges)
            below: tuple[Expression | Condition, ...] = (left, right)
            if low <= 0 <= high:
                return False
        case Comparison(_, left, right):
            below = (left, right)
        case Add(operands) | Multiply(operands) | Minimum(operands) | Maximum(operands):
            below = operands
        case All(conditions) | AnyOf(conditions):
            below = conditions
        case Negation(condition):
            below = (condition,)
        case _:
            return True
    return all(divides_safely(child, ranges) for child in below)
