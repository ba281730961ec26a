"""Decides whether a condition holds for all sizes that a contract allows.

Three ways are tried: algebra over normal forms and intervals, which proves; all points, where there
are few, which settles it; and some points, which can only refute. What is neither proven nor
refuted is undecided, and whoever asks must take that for a no.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from slipway.program.contract import Symbol
from slipway.program.expressions import (
    All,
    AnyOf,
    Comparison,
    Condition,
    Constant,
    Negation,
    compile_test,
    parts_of,
    symbols_of,
    weight_of,
)
from slipway.program.polynomials import Polynomial, Ranges, polynomial
from slipway.program.sizes import Interval
from slipway.program.work import TooMuchWorkError, Work

__all__ = [
    "EXHAUSTIVE_POINTS",
    "TOO_MUCH",
    "Answer",
    "Domain",
    "Finding",
    "is_small",
    "normal_form",
]

EXHAUSTIVE_POINTS = 1 << 16
"""Up to so many combinations of sizes, all are tried and the answer is certain."""

_CORNER_POINTS = 1 << 13
_RANDOM_POINTS = 1 << 12
_SCAN_DISTANCE = 1 << 12
"""How far to look for the first and the last size that conditions on one symbol allow."""

_REACH = 1 << 20
"""How far above its minimum a symbol without a maximum is sampled."""

_LARGEST = 1 << 12
"""Of how many parts a condition may consist: those of programs have a dozen, and one that lists
the sizes that are allowed has three for each."""

_ALGEBRA = 1 << 4
"""How many steps a part of a condition takes to be brought into normal form, about."""

_REBUILDING = 1 << 2
"""How many steps it takes for each part of the assumptions to look through them again."""


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


TOO_MUCH = Finding(Answer.UNDECIDED)
"""The finding where it would take too much work to find out."""

_Point = Mapping[int, int]
"""Values of those symbols that matter, by their indices."""


@dataclass(frozen=True)
class Domain:
    """The legal sizes: ranges of symbols, and what else holds of them.

    `work` is how much all that is found out about it may take.
    """

    symbols: tuple[Symbol, ...]
    assumptions: tuple[Condition, ...] = ()
    work: Work = field(default_factory=Work, compare=False)
    _points: dict[frozenset[int], list[_Point] | None] = field(default_factory=dict, compare=False)

    def given(self, condition: Condition) -> Domain:
        """Returns the part of the domain where a condition holds too."""
        with contextlib.suppress(TooMuchWorkError):
            self.work.take(_REBUILDING * self._weight)
        return Domain(self.symbols, (*self.assumptions, condition), self.work)

    def examine(self, condition: Condition) -> Finding:
        """Returns whether a condition holds throughout."""
        try:
            self.work.take(self._weight)
            if condition in self.assumptions:
                return Finding(Answer.ALWAYS)
            return self._examined(condition) if is_small(condition) else TOO_MUCH
        except TooMuchWorkError:
            return TOO_MUCH

    def _examined(self, condition: Condition) -> Finding:
        if self._proves(condition):
            return Finding(Answer.ALWAYS)
        mentioned = _mentioned(condition)
        involved = mentioned.union(*(self._tied.get(index, ()) for index in mentioned))
        points = self._all_points(involved)
        if points is not None:
            return self._settled(condition, points)
        # Fewer assumptions leave more points: if it holds at all of them, it holds.
        superset = Domain(self.symbols, self._about(mentioned), self.work)._all_points(mentioned)
        if superset is not None and self._settled(condition, superset).answer is Answer.ALWAYS:
            return Finding(Answer.ALWAYS)
        return self._sampled(condition, involved)

    @functools.cached_property
    def ranges(self) -> Ranges:
        """Returns for each symbol the range that its own conditions leave of the declared one."""
        return Ranges(self._range)

    def _about(self, symbols: frozenset[int]) -> tuple[Condition, ...]:
        """Returns the assumptions that mention none but these symbols."""
        return tuple(item for item, known in self._mentions if known and known <= symbols)

    @functools.cached_property
    def _weight(self) -> int:
        return len(self.symbols) + sum(map(weight_of, self.assumptions))

    @functools.cached_property
    def _mentions(self) -> list[tuple[Condition, frozenset[int]]]:
        return [(item, _mentioned(item)) for item in self.assumptions]

    @functools.cached_property
    def _own(self) -> dict[int, list[Condition]]:
        """Returns the assumptions that mention one symbol alone, by the symbol's index."""
        own: dict[int, list[Condition]] = {}
        for item, known in self._mentions:
            if len(known) == 1:
                own.setdefault(min(known), []).append(item)
        return own

    @functools.cached_property
    def _tied(self) -> dict[int, set[int]]:
        """Returns the symbols that assumptions tie together, by each of them."""
        groups: dict[int, set[int]] = {}
        for _, known in self._mentions:
            if len(known) < 2:
                continue
            several = [groups.setdefault(index, {index}) for index in known]
            largest = max(several, key=len)
            for group in several:
                if group is not largest:
                    largest |= group
                    groups.update(dict.fromkeys(group, largest))
        return groups

    # Algebra ----------------------------------------------------------------------------------

    @functools.cached_property
    def _small(self) -> list[Condition]:
        """Returns the assumptions that algebra can be done with."""
        self.work.take(self._weight)
        return list(filter(is_small, self.assumptions))

    @functools.cached_property
    def _facts(self) -> dict[int, list[tuple[str, Polynomial]]]:
        """Returns what the assumptions say, by each of the symbols that it depends on."""
        facts: dict[int, list[tuple[str, Polynomial]]] = {}
        for kind, fact in itertools.chain.from_iterable(map(_facts_of, self._small)):
            for symbol in fact.symbols:
                facts.setdefault(symbol, []).append((kind, fact))
        return facts

    def _facts_about(self, value: Polynomial) -> Iterator[tuple[str, Polynomial]]:
        """Yields the facts that say something of a symbol that a value depends on.

        Others have no say in whether the value is zero or more.
        """
        for symbol in value.symbols:
            for kind, fact in self._facts.get(symbol, ()):
                self.work.take(_ALGEBRA * (len(value.terms) + len(fact.terms)))
                yield kind, fact

    @functools.cached_property
    def _forms(self) -> set[object]:
        return {normal_form(item) for item in self._small}

    def _proves(self, condition: Condition) -> bool:
        self.work.take(_ALGEBRA * weight_of(condition))
        # A normal form does not tell where an expression has no value.
        return self.ranges.divides_safely(condition) and self._follows(condition)

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
        match kind:
            case ">=":
                return self._is_at_least(value)
            case "==":
                return self.ranges.bounds(value) == (0, 0) or self._is_known(kind, value)
            case _:
                return (
                    self._is_known(kind, value)
                    or self._is_at_least(value - _ONE)
                    or self._is_at_least(-value - _ONE)
                )

    def _is_known(self, kind: str, value: Polynomial) -> bool:
        return any(known == kind and fact == value for known, fact in self._facts_about(value))

    def _is_at_least(self, value: Polynomial) -> bool:
        """Returns whether a value is proven to be zero or more."""
        if self.ranges.bounds(value)[0] >= 0:
            return True
        for known, fact in self._facts_about(value):
            if known != "!=" and self.ranges.bounds(value - fact)[0] >= 0:
                return True
            if known == "==" and self.ranges.bounds(value + fact)[0] >= 0:
                return True
        return False

    # Points -----------------------------------------------------------------------------------

    def _all_points(self, involved: frozenset[int]) -> list[_Point] | None:
        """Returns every legal value of some symbols, or None where there are too many."""
        if involved not in self._points:
            self._points[involved] = self._enumerated(involved)
        return self._points[involved]

    def _enumerated(self, involved: frozenset[int]) -> list[_Point] | None:
        ranges = {index: self.ranges[index] for index in sorted(involved)}
        widths = [high - low + 1 for low, high in ranges.values()]
        if any(width <= 0 for width in widths):
            return []
        count = 1
        for width in widths:
            if width > EXHAUSTIVE_POINTS:
                return None
            count *= int(width)
            if count > EXHAUSTIVE_POINTS:
                return None
        axes = [range(int(low), int(high) + 1) for low, high in ranges.values()]
        return self._legal(itertools.product(*axes), count, ranges)

    def _legal(
        self, points: Iterable[tuple[int, ...]], count: int, involved: Iterable[int]
    ) -> list[_Point]:
        """Returns the legal ones of points, which are values of the symbols that are involved."""
        indices = tuple(involved)
        assumptions = self._about(frozenset(indices))
        self.work.take(count * (len(indices) + sum(map(weight_of, assumptions))))
        tests = [compile_test(item) for item in assumptions]
        named = (dict(zip(indices, point, strict=True)) for point in points)
        return [point for point in named if all(test(point) for test in tests)]

    def _settled(self, condition: Condition, points: Sequence[_Point]) -> Finding:
        self.work.take(len(points) * weight_of(condition))
        holds_at = compile_test(condition)
        failing = [point for point in points if not holds_at(point)]
        if not failing:
            return Finding(Answer.ALWAYS)
        answer = Answer.NEVER if len(failing) == len(points) else Answer.SOMETIMES
        return Finding(answer, failing[0])

    def _sampled(self, condition: Condition, involved: frozenset[int]) -> Finding:
        constants = sorted(
            {abs(value) for item in (condition, *self.assumptions) for value in _constants(item)}
        )
        self.work.take(len(involved) * len(constants) * _ALGEBRA)
        axes = {index: self._corners(index, constants) for index in sorted(involved)}
        # Seeded, so that the same contracts get the same answer.
        source = random.Random(0)
        corners = itertools.islice(itertools.product(*axes.values()), _CORNER_POINTS)
        sampled = (
            tuple(
                source.choice(axis) if source.random() < 0.3 else _drawn(source, self.ranges[index])
                for index, axis in axes.items()
            )
            for _ in range(_RANDOM_POINTS)
        )
        count = _CORNER_POINTS + _RANDOM_POINTS
        points = self._legal(itertools.chain(corners, sampled), count, axes)
        self.work.take(len(points) * weight_of(condition))
        holds_at = compile_test(condition)
        for point in points:
            if not holds_at(point):
                return Finding(Answer.SOMETIMES, point)
        return Finding(Answer.UNDECIDED, tried=len(points))

    def _corners(self, index: int, constants: Sequence[int]) -> list[int]:
        """Returns sizes of a symbol at which something may change."""
        low, high = self.ranges[index]
        ceiling = int(min(high, low + _REACH))
        small = [value for value in constants if value >= 2]
        limits = {*constants, *(one // other for one in constants for other in small[:8])}
        near = {value + step for value in limits for step in (-1, 0, 1)}
        near |= {int(low) + step for step in (0, 1, 2, 3, 7)}
        near |= {ceiling - step for step in (0, 1, 7)}
        if high != math.inf:
            near |= {int(high), int(high) - 1}
        legal = self._legality(index)
        found: set[int] = set()
        for value in sorted(value for value in near if low <= value <= high)[:48]:
            # The next size that the symbol's own conditions allow: a multiple of 8, say.
            reachable = range(value, int(min(high, value + 64)) + 1)
            found.update(itertools.islice(filter(legal, reachable), 1))
        return sorted(found) or [int(low)]

    def _legality(self, index: int) -> Callable[[int], bool]:
        """Returns whether a size of a symbol satisfies the conditions on that symbol alone."""
        conditions = self._own.get(index, [])
        tests = [compile_test(item) for item in conditions]
        weight = sum(map(weight_of, conditions))

        def legal(candidate: int) -> bool:
            self.work.take(weight)
            return all(test({index: candidate}) for test in tests)

        return legal

    def _range(self, index: int) -> Interval:
        low, high = self.symbols[index].interval
        if index not in self._own:
            return low, high
        legal = self._legality(index)
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


def is_small(condition: Condition) -> bool:
    """Returns whether a condition has no more parts than can be reasoned about."""
    return sum(1 for _ in itertools.islice(parts_of(condition), _LARGEST + 1)) <= _LARGEST


@functools.cache
def _mentioned(condition: Condition) -> frozenset[int]:
    return frozenset(item.index for item in symbols_of(condition))


def _drawn(source: random.Random, interval: Interval) -> int:
    low = int(interval[0])
    width = int(min(interval[1] - low, _REACH))
    # Small sizes as often as large ones.
    size = int(2 ** source.uniform(0, math.log2(width + 1)))
    return low + min(width, size - source.randrange(2))


def _constants(condition: Condition) -> Iterator[int]:
    return (part.value for part in parts_of(condition) if isinstance(part, Constant))


_ONE = polynomial(Constant(1))


@functools.cache
def _facts_of(condition: Condition) -> tuple[tuple[str, Polynomial], ...]:
    """Returns what a condition says: that polynomials are `>=`, `==` or `!=` zero."""
    match condition:
        case All(conditions):
            return tuple(itertools.chain.from_iterable(map(_facts_of, conditions)))
        case Comparison(operator, left, right):
            difference = polynomial(left) - polynomial(right)
            match operator:
                case "==" | "!=":
                    return ((operator, _primitive(difference)),)
                case ">=":
                    return ((">=", difference),)
                case ">":
                    return ((">=", difference - _ONE),)
                case "<=":
                    return ((">=", -difference),)
                case "<":
                    return ((">=", -difference - _ONE),)
    return ()


def _primitive(value: Polynomial) -> Polynomial:
    """Returns a polynomial without the factor that its terms share, and with a fixed sign."""
    if not value.terms:
        return value
    divisor = math.gcd(*value.factors) * (1 if value.terms[-1][1] > 0 else -1)
    return Polynomial(tuple((atoms, factor // divisor) for atoms, factor in value.terms))


@functools.cache
def normal_form(condition: Condition) -> object:
    """Returns what two conditions share that are written differently but say the same.

    They do so wherever neither divides by zero.
    """
    match condition:
        case Comparison():
            return _facts_of(condition)[0]
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
