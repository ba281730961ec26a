"""Decides whether a condition holds for all sizes that a contract allows.

Three ways are tried: algebra over normal forms and intervals, which proves; all points, where there
are few, which settles it; and some points, which can only refute. What is neither proven nor
refuted is undecided, and whoever asks must take that for a no.
"""

from __future__ import annotations

import enum
import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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
    compile_condition,
    symbols_of,
)
from slipway.program.polynomials import (
    Interval,
    Polynomial,
    bounds,
    divides_safely,
    interval_of,
    polynomial,
)

__all__ = ["EXHAUSTIVE_POINTS", "Answer", "Domain", "Finding", "normal_form"]

EXHAUSTIVE_POINTS = 1 << 16
"""Up to so many combinations of sizes, all are tried and the answer is certain."""

_CORNER_POINTS = 1 << 13
_RANDOM_POINTS = 1 << 12
_SCAN_DISTANCE = 1 << 12
"""How far to look for the first and the last size that conditions on one symbol allow."""

_REACH = 1 << 20
"""How far above its minimum a symbol without a maximum is sampled."""


class Answer(enum.Enum):
    ALWAYS = "always"
    SOMETIMES = "sometimes"
    NEVER = "never"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a condition holds.

    Attributes:
      answer: ALWAYS and NEVER are certain. SOMETIMES: it fails at `counterexample`.
      counterexample: the values of the symbols that matter, by their indices.
      tried: how many points did not refute an undecided condition.
    """

    answer: Answer
    counterexample: Mapping[int, int] | None = None
    tried: int = 0


@dataclass(frozen=True)
class Domain:
    """The legal sizes: ranges of symbols, and what else holds of them."""

    symbols: tuple[Symbol, ...]
    assumptions: tuple[Condition, ...] = ()
    _points: dict[frozenset[int], list[tuple[int, ...]] | None] = field(
        default_factory=dict, compare=False
    )

    def given(self, condition: Condition) -> Domain:
        """Returns the part of the domain where a condition holds too."""
        return Domain(self.symbols, (*self.assumptions, condition))

    def examine(self, condition: Condition) -> Finding:
        """Returns whether a condition holds throughout."""
        if self._proves(condition):
            return Finding(Answer.ALWAYS)
        involved = self._involved(condition)
        points = self._all_points(involved)
        if points is not None:
            return _settled(condition, points, involved)
        mentioned = frozenset(item.index for item in symbols_of(condition))
        # Fewer assumptions leave more points: if it holds at all of them, it holds.
        superset = Domain(self.symbols, self._about(mentioned))._all_points(mentioned)
        if (
            superset is not None
            and _settled(condition, superset, mentioned).answer is Answer.ALWAYS
        ):
            return Finding(Answer.ALWAYS)
        return self._sampled(condition, involved)

    @functools.cached_property
    def ranges(self) -> tuple[Interval, ...]:
        """Returns for each symbol the range that its own conditions leave of the declared one."""
        return tuple(
            _tightened(symbol, index, self._about(frozenset([index])))
            for index, symbol in enumerate(self.symbols)
        )

    def _about(self, symbols: frozenset[int]) -> tuple[Condition, ...]:
        """Returns the assumptions that mention none but these symbols."""
        return tuple(item for item, known in self._mentions if known and known <= symbols)

    @functools.cached_property
    def _mentions(self) -> list[tuple[Condition, frozenset[int]]]:
        return [
            (item, frozenset(symbol.index for symbol in symbols_of(item)))
            for item in self.assumptions
        ]

    def _involved(self, condition: Condition) -> frozenset[int]:
        """Returns the symbols of a condition, and those that assumptions tie to them."""
        involved = frozenset(item.index for item in symbols_of(condition))
        while True:
            tied = [known for _, known in self._mentions if known & involved]
            wider = involved.union(*tied)
            if wider == involved:
                return involved
            involved = wider

    # Algebra ----------------------------------------------------------------------------------

    @functools.cached_property
    def _facts(self) -> list[tuple[str, Polynomial]]:
        return list(itertools.chain.from_iterable(map(_facts_of, self.assumptions)))

    @functools.cached_property
    def _forms(self) -> set[object]:
        return {normal_form(item) for item in self.assumptions}

    def _proves(self, condition: Condition) -> bool:
        if condition in self.assumptions:
            return True
        # A normal form does not tell where an expression has no value.
        return divides_safely(condition, self.ranges) and self._follows(condition)

    def _follows(self, condition: Condition) -> bool:
        if normal_form(condition) in self._forms:
            return True
        match condition:
            case Comparison():
                return all(self._compares(kind, value) for kind, value in _facts_of(condition))
            case All(conditions):
                return all(self._follows(item) for item in conditions)
            case AnyOf(conditions):
                return any(self._follows(item) for item in conditions)
            case Negation(inner):
                opposite = _opposite(inner)
                return opposite is not None and self._follows(opposite)
            case _:
                return False

    def _compares(self, kind: str, value: Polynomial) -> bool:
        low, high = bounds(value, self.ranges)
        match kind:
            case ">=":
                return low >= 0 or self._is_at_least(value)
            case "==":
                return low == high == 0 or any(
                    known == "==" and fact in (value, -value) for known, fact in self._facts
                )
            case _:
                return (
                    low > 0
                    or high < 0
                    or any(known == "!=" and fact in (value, -value) for known, fact in self._facts)
                )

    def _is_at_least(self, value: Polynomial) -> bool:
        for known, fact in self._facts:
            if known != "!=" and bounds(value - fact, self.ranges)[0] >= 0:
                return True
            if known == "==" and bounds(value + fact, self.ranges)[0] >= 0:
                return True
        return False

    # Points -----------------------------------------------------------------------------------

    def _all_points(self, involved: frozenset[int]) -> list[tuple[int, ...]] | None:
        """Returns every legal value of some symbols, or None where there are too many."""
        if involved not in self._points:
            self._points[involved] = self._enumerated(involved)
        return self._points[involved]

    def _enumerated(self, involved: frozenset[int]) -> list[tuple[int, ...]] | None:
        widths = [self.ranges[index][1] - self.ranges[index][0] + 1 for index in involved]
        if any(width <= 0 for width in widths):
            return []
        count = 1
        for width in widths:
            if width > EXHAUSTIVE_POINTS:
                return None
            count *= int(width)
            if count > EXHAUSTIVE_POINTS:
                return None
        axes = [
            range(int(low), int(high) + 1) if index in involved else (self.symbols[index].minimum,)
            for index, (low, high) in enumerate(self.ranges)
        ]
        return self._legal(itertools.product(*axes), involved)

    def _legal(
        self, points: Iterator[tuple[int, ...]], involved: frozenset[int]
    ) -> list[tuple[int, ...]]:
        tests = [_total(item) for item in self._about(involved)]
        return [point for point in points if all(test(point) for test in tests)]

    def _sampled(self, condition: Condition, involved: frozenset[int]) -> Finding:
        axes = [
            self._corners(index, condition) if index in involved else [symbol.minimum]
            for index, symbol in enumerate(self.symbols)
        ]
        # Seeded, so that the same contracts get the same answer.
        source = random.Random(0)
        corners = itertools.islice(itertools.product(*axes), _CORNER_POINTS)
        sampled = (
            tuple(
                source.choice(axis)
                if index not in involved or source.random() < 0.3
                else _drawn(source, self.ranges[index])
                for index, axis in enumerate(axes)
            )
            for _ in range(_RANDOM_POINTS)
        )
        points = self._legal(itertools.chain(corners, sampled), involved)
        holds_at = _total(condition)
        for point in points:
            if not holds_at(point):
                return Finding(Answer.SOMETIMES, _values(point, involved))
        return Finding(Answer.UNDECIDED, tried=len(points))

    def _corners(self, index: int, condition: Condition) -> list[int]:
        """Returns sizes of a symbol at which something may change."""
        low, high = self.ranges[index]
        ceiling = int(min(high, low + _REACH))
        constants = {
            abs(value) for item in (condition, *self.assumptions) for value in _constants(item)
        }
        small = [value for value in constants if value >= 2]
        limits = constants | {one // other for one in constants for other in small[:8]}
        near = {value + step for value in limits for step in (-1, 0, 1)}
        near |= {int(low) + step for step in (0, 1, 2, 3, 7)}
        near |= {ceiling - step for step in (0, 1, 7)}
        if high != math.inf:
            near |= {int(high), int(high) - 1}
        tests = [_total(item) for item in self._about(frozenset([index]))]
        values = [self.symbols[i].minimum for i in range(len(self.symbols))]
        found = set()
        for value in sorted(value for value in near if low <= value <= high)[:48]:
            # The next size that the symbol's own conditions allow: a multiple of 8, say.
            for candidate in range(value, int(min(high, value + 64)) + 1):
                values[index] = candidate
                if all(test(values) for test in tests):
                    found.add(candidate)
                    break
        return sorted(found) or [int(low)]


def _settled(
    condition: Condition, points: Sequence[tuple[int, ...]], involved: frozenset[int]
) -> Finding:
    holds_at = _total(condition)
    failing = [point for point in points if not holds_at(point)]
    if not failing:
        return Finding(Answer.ALWAYS)
    answer = Answer.NEVER if len(failing) == len(points) else Answer.SOMETIMES
    return Finding(answer, _values(failing[0], involved))


def _values(point: Sequence[int], involved: frozenset[int]) -> dict[int, int]:
    return {index: point[index] for index in sorted(involved)}


def _total(condition: Condition) -> Callable[[Sequence[int]], bool]:
    """Returns a test of a condition that is false where it divides by zero."""
    compiled = compile_condition(condition)

    def test(values: Sequence[int]) -> bool:
        try:
            return compiled(values)
        except ZeroDivisionError:
            return False

    return test


def _tightened(symbol: Symbol, index: int, conditions: Sequence[Condition]) -> Interval:
    low, high = interval_of(symbol)
    if not conditions:
        return low, high
    tests = [_total(item) for item in conditions]
    values = [0] * (index + 1)

    def legal(candidate: int) -> bool:
        values[index] = candidate
        return all(test(values) for test in tests)

    for _ in range(_SCAN_DISTANCE):
        if low > high or legal(int(low)):
            break
        low += 1
    if high != math.inf:
        for _ in range(_SCAN_DISTANCE):
            if high < low or legal(int(high)):
                break
            high -= 1
    return low, high


def _drawn(source: random.Random, interval: Interval) -> int:
    low = int(interval[0])
    width = int(min(interval[1] - low, _REACH))
    # Small sizes as often as large ones.
    size = int(2 ** source.uniform(0, math.log2(width + 1)))
    return low + min(width, size - source.randrange(2))


def _constants(node: Expression | Condition) -> Iterator[int]:
    match node:
        case Constant(value):
            yield value
        case Add(parts) | Multiply(parts) | Minimum(parts) | Maximum(parts):
            for part in parts:
                yield from _constants(part)
        case FloorDivide(left, right) | Modulo(left, right) | Comparison(_, left, right):
            yield from _constants(left)
            yield from _constants(right)
        case All(conditions) | AnyOf(conditions):
            for condition in conditions:
                yield from _constants(condition)
        case Negation(inner):
            yield from _constants(inner)


_ONE = polynomial(Constant(1))


def _facts_of(condition: Condition) -> Iterator[tuple[str, Polynomial]]:
    """Yields what a condition says: that polynomials are `>=`, `==` or `!=` zero."""
    match condition:
        case All(conditions):
            for item in conditions:
                yield from _facts_of(item)
        case Comparison(operator, left, right):
            difference = polynomial(left) - polynomial(right)
            match operator:
                case "==" | "!=":
                    yield operator, _primitive(difference)
                case ">=":
                    yield ">=", difference
                case ">":
                    yield ">=", difference - _ONE
                case "<=":
                    yield ">=", -difference
                case "<":
                    yield ">=", -difference - _ONE


def _primitive(value: Polynomial) -> Polynomial:
    """Returns a polynomial without the factor that its terms share, and with a fixed sign."""
    if not value.terms:
        return value
    divisor = math.gcd(*value.factors) * (1 if value.terms[-1][1] > 0 else -1)
    return Polynomial(tuple((atoms, factor // divisor) for atoms, factor in value.terms))


def normal_form(condition: Condition) -> object:
    """Returns what two conditions share that are written differently but say the same.

    They do so wherever neither divides by zero.
    """
    match condition:
        case Comparison():
            return next(_facts_of(condition))
        case All(conditions):
            return "all", frozenset(map(normal_form, conditions))
        case AnyOf(conditions):
            return "any", frozenset(map(normal_form, conditions))
        case Negation(inner):
            opposite = _opposite(inner)
            return ("not", normal_form(inner)) if opposite is None else normal_form(opposite)
        case _:
            raise TypeError(f"not a condition: {condition!r}")


_OPPOSITES = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


def _opposite(condition: Condition) -> Condition | None:
    match condition:
        case Comparison(operator, left, right):
            return Comparison(_OPPOSITES[operator], left, right)
        case Negation(inner):
            return inner
        case _:
            return None
