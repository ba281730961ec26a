"""Finds the few sizes that a relation excludes, so that each can be tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from slipway.program.contract import Symbol
from slipway.program.expressions import Comparison, Condition, holds, linear_form, symbols_of
from slipway.program.sizes import Interval, SizeError, interval_of

__all__ = ["Point", "excluded_points"]

Point = tuple[tuple[int, int], ...]
"""The indices of some symbols, each with a value."""

_FEW = 2
"""So many sizes of one dimension are tried, each by tracing the model again."""

_FEW_TOGETHER = 24
"""So many combinations of sizes likewise: few heights and widths make 256 or 576 patches."""

_FAR = 1 << 40
"""Sizes beyond it are not looked at."""

_MOST_BOXES = 1 << 14
"""Into so many parts the ranges are divided to find them: enough for a product of 2000."""

Box = tuple[tuple[int, float], ...]
"""The lowest and the highest size of each symbol that a relation is about."""


def excluded_points(condition: Condition, symbols: Sequence[Symbol]) -> list[Point]:
    """Returns the values of a condition's symbols for which it fails, if these are only a few.

    Otherwise, or where they cannot be found, it returns none. Equalities are not looked into: they
    leave few sizes in place of excluding few.

    Args:
      condition: what a graph needs.
      symbols: of the contract, with their ranges.
    """
    if not isinstance(condition, Comparison) or condition.operator == "==":
        return []
    involved = sorted({item.index for item in symbols_of(condition)})
    most = _FEW if linear_form(condition.left) is not None else _FEW_TOGETHER
    ranges: list[Interval] = [(0, math.inf)] * len(symbols)
    values = [0] * len(symbols)
    found: list[Point] = []
    whole = tuple((symbols[i].minimum, symbols[i].maximum or math.inf) for i in involved)
    boxes: list[Box] = [whole]
    for _ in range(_MOST_BOXES):
        if not boxes:
            return sorted(found)
        box = boxes.pop()
        if any(low > _FAR for low, _ in box):
            return []
        for index, interval in zip(involved, box, strict=True):
            ranges[index] = interval
        answer = _answer(condition, ranges)
        count = math.prod(high - low + 1 for low, high in box)
        if answer is False and len(found) + count > most:
            return []
        if answer is True:
            continue
        if answer is None and count > 1:
            boxes += _halves(box)
            continue
        for point in itertools.product(*(range(low, int(high) + 1) for low, high in box)):
            for index, value in zip(involved, point, strict=True):
                values[index] = value
            if not holds(condition, values):
                found.append(tuple(zip(involved, point, strict=True)))
        if len(found) > most:
            return []
    return []


def _answer(condition: Comparison, ranges: Sequence[Interval]) -> bool | None:
    """Returns whether a condition holds in all of a box, or in none of it; None if unknown."""
    try:
        low, high = interval_of(condition.left, ranges)
        least, most = interval_of(condition.right, ranges)
    except SizeError:
        return None
    match condition.operator:
        case "<":
            return True if high < least else False if low >= most else None
        case "<=":
            return True if high <= least else False if low > most else None
        case ">":
            return True if low > most else False if high <= least else None
        case ">=":
            return True if low >= most else False if high < least else None
        case _:
            return True if high < least or low > most else None


def _halves(box: Box) -> list[Box]:
    """Returns the two parts of a box along the side whose ends are most times apart."""

    def is_longer(place: int) -> tuple[float, float]:
        low, high = box[place]
        # A factor of 0 makes a product 0 however long the other sides are.
        return (high / low if low else high and math.inf, -low)

    place = max(range(len(box)), key=is_longer)
    low, high = box[place]
    middle = (low + int(high)) // 2 if low and high < math.inf else 2 * low
    return [(*box[:place], side, *box[place + 1 :]) for side in ((low, middle), (middle + 1, high))]
