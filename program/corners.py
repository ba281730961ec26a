"""Calls at the edges of a contract: where a graph that is valid for some sizes first fails."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

from slipway.program.contract import Contract, Symbol

__all__ = ["corner_bindings", "element_count"]

_UNBOUNDED = 97
"""What stands for the upper end of a symbol without one."""

_ATTEMPTS = 4096


def corner_bindings(contract: Contract, largest: int) -> Iterator[tuple[int, ...]]:
    """Yields legal values of the symbols: the ends of each range in all combinations, 0 and 1, some
    between.

    Args:
      contract: whose calls are wanted.
      largest: no call has more elements in its inputs; sizes that would give more are halved.
    """
    # Seeded, so that a test does the same every time.
    source = random.Random(0)
    axes = [
        sorted({symbol.minimum, max(symbol.minimum, 1), _highest(symbol)})
        for symbol in contract.symbols
    ]
    candidates = itertools.chain(
        [tuple(axis[0] for axis in axes), tuple(axis[-1] for axis in axes)],
        itertools.islice(itertools.product(*axes), _ATTEMPTS),
        (
            tuple(source.randint(item.minimum, _highest(item)) for item in contract.symbols)
            for _ in range(_ATTEMPTS)
        ),
    )
    seen = set()
    for candidate in candidates:
        values = candidate
        while element_count(contract, values) > largest and any(
            value > symbol.minimum for value, symbol in zip(values, contract.symbols, strict=True)
        ):
            values = tuple(
                max(symbol.minimum, value // 2)
                for value, symbol in zip(values, contract.symbols, strict=True)
            )
        if values not in seen and contract.is_legal(values):
            seen.add(values)
            if 0 <= element_count(contract, values) <= largest:
                yield values


def element_count(contract: Contract, binding: tuple[int, ...]) -> float:
    """Returns how many elements the inputs of a call have; -1 where its sizes are none."""
    count = 0
    for spec in contract.tensor_inputs.values():
        try:
            shape = [size.evaluate(binding) for size in spec.shape]
        except ZeroDivisionError:
            return -1
        if any(size < 0 for size in shape):
            return -1
        count += math.prod(shape)
    return count


def _highest(symbol: Symbol) -> int:
    return max(symbol.minimum, _UNBOUNDED) if symbol.maximum is None else symbol.maximum
