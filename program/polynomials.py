"""Expressions in a normal form, and the values that they can take: what can be known of all sizes.

Two expressions with the same normal form have the same value wherever both have one. A polynomial's
terms are products of atoms: symbols, and those divisions, minima and maxima that do not simplify.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from slipway.program.expressions import (
    Add,
    Condition,
    Constant,
    Expression,
    FloorDivide,
    Maximum,
    Minimum,
    Modulo,
    Multiply,
    SymbolReference,
    children_of,
)
from slipway.program.sizes import INTERVALS, Interval, add, multiply

__all__ = ["Polynomial", "Ranges", "polynomial"]

_MAXIMUM_TERMS = 64
"""A product with more terms is an atom of its own, so that no expression can make this slow."""


@dataclass(frozen=True, slots=True, eq=False)
class _Atom:
    """`kind` is `symbol`, `//`, `%`, `min`, `max` or `*`.

    There is one of each, so that atoms are compared by what they are and not by what they are made
    of: that may be exponentially large, written out.
    """

    number: int
    kind: str
    symbol: int
    operands: tuple[Polynomial, ...]
    symbols: frozenset[int]


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

    @property
    def symbols(self) -> set[int]:
        """Returns the indices of the symbols that it depends on."""
        return {symbol for atoms, _ in self.terms for atom in atoms for symbol in atom.symbols}

    @property
    def key(self) -> list[tuple[list[int], int]]:
        """Returns what polynomials are sorted by."""
        return [(_order(atoms), factor) for atoms, factor in self.terms]

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
    kept.sort(key=lambda term: _order(term[0]))
    return Polynomial(tuple(kept))


def _order(atoms: _Monomial) -> list[int]:
    return [atom.number for atom in atoms]


def _constant(value: int) -> Polynomial:
    return Polynomial((((), value),) if value else ())


_numbers = itertools.count()


@functools.cache
def _atom(kind: str, *operands: Polynomial, symbol: int = -1) -> Polynomial:
    symbols = frozenset({symbol} if kind == "symbol" else ())
    symbols = symbols.union(*(operand.symbols for operand in operands))
    return Polynomial((((_Atom(next(_numbers), kind, symbol, operands, symbols),), 1),))


@functools.cache
def polynomial(expression: Expression) -> Polynomial:
    """Returns an expression's normal form. Raises: ValueError, for a size that depends on data."""
    match expression:
        case Constant(value):
            return _constant(value)
        case SymbolReference(index, _):
            return _atom("symbol", symbol=index)
        case Add(operands):
            # All at once: one by one takes quadratic time.
            return _collected(
                itertools.chain.from_iterable(polynomial(item).terms for item in operands)
            )
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
        return _atom("*", *sorted((one, other), key=lambda item: item.key))
    return _collected(
        (tuple(sorted(first + second, key=lambda atom: atom.number)), a * b)
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
    distinct = sorted(set(operands), key=lambda item: item.key)
    return distinct[0] if len(distinct) == 1 else _atom(kind, *distinct)


# What values are possible -------------------------------------------------------------------------


class Ranges:
    """In what range polynomials are; of each symbol and each atom that is found out once."""

    def __init__(self, of_symbol: Callable[[int], Interval]) -> None:
        """Starts with nothing known.

        Args:
          of_symbol: returns the range of a symbol, by its index.
        """
        self._of_symbol = functools.cache(of_symbol)
        self._atoms: dict[_Atom, Interval] = {}

    def __getitem__(self, symbol: int) -> Interval:
        """Returns the range of a symbol, by its index."""
        return self._of_symbol(symbol)

    def bounds(self, value: Polynomial) -> Interval:
        """Returns an interval that every value lies in; it may be wider than it need be."""
        low: float = 0
        high: float = 0
        for atoms, factor in value.terms:
            term: Interval = (factor, factor)
            for atom in atoms:
                term = multiply(term, self._of_atom(atom))
            low, high = add(low, term[0]), add(high, term[1])
        return low, high

    def _of_atom(self, atom: _Atom) -> Interval:
        if atom not in self._atoms:
            if atom.kind == "symbol":
                self._atoms[atom] = self[atom.symbol]
            else:
                each = [self.bounds(operand) for operand in atom.operands]
                self._atoms[atom] = INTERVALS[atom.kind](each)
        return self._atoms[atom]

    def divides_safely(self, node: Expression | Condition) -> bool:
        """Returns whether nothing below `node` can divide by zero."""
        match node:
            case FloorDivide(_, right) | Modulo(_, right):
                low, high = self.bounds(polynomial(right))
                if low <= 0 <= high:
                    return False
        return all(map(self.divides_safely, children_of(node)))
