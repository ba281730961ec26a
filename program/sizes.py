"""What is known of a size before any call: the range of its values, and how large they can become.

Intervals are of integers. They may be wider than they need be, never narrower.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

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

__all__ = [
    "INTERVALS",
    "MAXIMUM_BITS",
    "Interval",
    "SizeError",
    "add",
    "check_magnitude",
    "interval_of",
    "multiply",
]

MAXIMUM_BITS = 900
"""How many bits the value of an expression may take, and of each of its parts.

A size of a tensor takes 63, so this is fourteen of the largest ones multiplied. Beyond it products
of a thousand factors would take longer to compute, and to write down, than anybody waits.
"""

_SIZE_BITS = 63

Interval = tuple[float, float]
"""The lowest and the highest value, both included: integers, or infinities."""


class SizeError(ValueError):
    """An expression has no value that a size could have."""


def check_magnitude(node: Expression | Condition) -> None:
    """Raises SizeError if a part of an expression can take more than MAXIMUM_BITS bits.

    Symbols count as the largest sizes whatever their ranges are: messages about calls that break
    a contract are computed from the sizes that those calls have.
    """
    _bits(node)


def _bits(node: Expression | Condition) -> int:
    each = [_bits(child) for child in children_of(node)]
    match node:
        case Constant(value):
            bits = value.bit_length()
        case SymbolReference():
            bits = _SIZE_BITS
        case Add():
            bits = max(each) + len(each).bit_length()
        case Multiply():
            bits = sum(each)
        case FloorDivide():
            bits = each[0] + 1
        case _:
            bits = max(each, default=0)
    if bits > MAXIMUM_BITS:
        raise SizeError(
            f"an expression can have values of {bits} bits; {MAXIMUM_BITS} are allowed, and the "
            f"size of a tensor takes {_SIZE_BITS}"
        )
    # A factor of one bit still makes a product longer.
    return max(bits, 1)


def interval_of(expression: Expression, ranges: Sequence[Interval]) -> Interval:
    """Returns an interval that every value of an expression lies in.

    Args:
      expression: over symbols, and without sizes that depend on data.
      ranges: of each symbol.

    Raises:
      SizeError: it divides by zero, whatever the symbols are.
    """
    match expression:
        case Constant(value):
            return value, value
        case SymbolReference(index, _):
            return ranges[index]
        case Add(operands):
            kind = "+"
        case Multiply(operands):
            kind = "*"
        case Minimum(operands):
            kind = "min"
        case Maximum(operands):
            kind = "max"
        case FloorDivide(left, right):
            kind, operands = "//", (left, right)
        case Modulo(left, right):
            kind, operands = "%", (left, right)
        case _:
            return -math.inf, math.inf
    each = [interval_of(operand, ranges) for operand in operands]
    if kind in ("//", "%") and each[1] == (0, 0):
        raise SizeError("it divides by zero")
    return INTERVALS[kind](each)


def add(one: float, other: float) -> float:
    """Returns the sum of two bounds, both lower or both upper ones."""
    # Not one + other: integers may be too large to be floats.
    if isinstance(one, float):
        return one
    return other if isinstance(other, float) else one + other


def _product(one: float, other: float) -> float:
    if one == 0 or other == 0:
        return 0
    if isinstance(one, float) or isinstance(other, float):
        return math.inf if (one > 0) == (other > 0) else -math.inf
    return one * other


def multiply(one: Interval, other: Interval) -> Interval:
    """Returns an interval with every product of a value of each."""
    corners = [_product(a, b) for a in one for b in other]
    return min(corners), max(corners)


def _sum(each: Sequence[Interval]) -> Interval:
    return (
        functools.reduce(add, (low for low, _ in each)),
        functools.reduce(add, (high for _, high in each)),
    )


def _floor(value: float, divisor: float) -> float:
    if isinstance(value, float):
        return value
    if isinstance(divisor, float):
        return 0 if value >= 0 else -1
    return value // divisor


def _quotient(each: Sequence[Interval]) -> Interval:
    (low, high), divisor = each
    if divisor[0] <= 0:
        return -math.inf, math.inf
    return min(_floor(low, d) for d in divisor), max(_floor(high, d) for d in divisor)


def _remainder(each: Sequence[Interval]) -> Interval:
    (low, high), divisor = each
    if divisor[0] <= 0:
        return -math.inf, math.inf
    if low >= 0 and high < divisor[0]:
        return low, high
    return 0, add(divisor[1], -1)


INTERVALS: Mapping[str, Callable[[Sequence[Interval]], Interval]] = {
    "+": _sum,
    "*": lambda each: functools.reduce(multiply, each),
    "//": _quotient,
    "%": _remainder,
    "min": lambda each: (min(low for low, _ in each), min(high for _, high in each)),
    "max": lambda each: (max(low for low, _ in each), max(high for _, high in each)),
}
"""The interval of what an operator gives, from those of its operands."""
