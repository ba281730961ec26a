"""The legal call nearest to one that was refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from slipway.program.contract import Contract, TensorInputs, find_binders
from slipway.program.expressions import weight_of

__all__ = ["nearest_call"]

_DISTANCE = 256
"""How far from the nearest size in range to look for one that satisfies the relations."""

_ATTEMPTS = 1 << 14

_STEPS = 1 << 22
"""How many parts of sizes and relations may be evaluated in all attempts, some 0.5 s of them."""


def nearest_call(contract: Contract, inputs: TensorInputs) -> dict[str, tuple[int, ...]] | None:
    """Returns the shapes of a legal call near one that is not; None if none was found.

    Sizes that must be given are changed as little as possible, measured in symbols.

    Args:
      contract: what the call breaks.
      inputs: of the call; those that are missing or of another rank count as the smallest.
    """
    wished = _wished(contract, inputs)
    weight = 1 + sum(weight_of(item.condition) for item in contract.relations)
    weight += sum(
        weight_of(size) for spec in contract.tensor_inputs.values() for size in spec.shape
    )
    # What is out of a symbol's range costs little, and still must not be tried for ever.
    tried = itertools.islice(_around(contract, wished), 1 + _STEPS // weight)
    inside = (values for values in tried if values is not None)
    for values in itertools.islice(inside, _ATTEMPTS):
        shapes = _shapes(contract, values)
        if shapes is not None and _is_legal(contract, shapes):
            return shapes
    return None


def _wished(contract: Contract, inputs: TensorInputs) -> list[int]:
    """Returns for each symbol the value in its range that is nearest to what the call has."""
    wished = []
    for binder in find_binders(contract):
        symbol = contract.symbols[binder.symbol]
        spec = contract.tensor_inputs[binder.input]
        value = symbol.minimum
        if binder.input in inputs and len(inputs[binder.input][1]) == spec.rank:
            size = inputs[binder.input][1][binder.dimension]
            # Rounded in integers: they may be too large to be floats.
            value = (2 * (size - binder.offset) + binder.factor) // (2 * binder.factor)
        value = max(value, symbol.minimum)
        wished.append(value if symbol.maximum is None else min(value, symbol.maximum))
    return wished


def _around(contract: Contract, wished: Sequence[int]) -> Iterator[tuple[int, ...] | None]:
    """Yields values of the symbols: first those wished, then changes of one, then of several.

    None stands for values of which one is out of its symbol's range.
    """
    yield tuple(wished)
    steps = [step * sign for step in range(1, _DISTANCE + 1) for sign in (-1, 1)]
    for step in steps:
        for index in range(len(wished)):
            yield _changed(contract, wished, {index: step})
    for distance in range(2, _DISTANCE):
        for one, other in itertools.combinations(range(len(wished)), 2):
            for part in range(1, distance):
                for first, second in itertools.product(
                    (-part, part), (part - distance, distance - part)
                ):
                    yield _changed(contract, wished, {one: first, other: second})


def _changed(
    contract: Contract, wished: Sequence[int], steps: dict[int, int]
) -> tuple[int, ...] | None:
    values = list(wished)
    for index, step in steps.items():
        symbol = contract.symbols[index]
        values[index] += step
        if values[index] < symbol.minimum:
            return None
        if symbol.maximum is not None and values[index] > symbol.maximum:
            return None
    return tuple(values)


def _shapes(contract: Contract, values: Sequence[int]) -> dict[str, tuple[int, ...]] | None:
    try:
        return {
            name: tuple(size.evaluate(values) for size in spec.shape)
            for name, spec in contract.tensor_inputs.items()
        }
    except ZeroDivisionError:
        return None


def _is_legal(contract: Contract, shapes: dict[str, tuple[int, ...]]) -> bool:
    if any(size < 0 for shape in shapes.values() for size in shape):
        return False
    call = {name: (spec.dtype, shapes[name]) for name, spec in contract.tensor_inputs.items()}
    return contract.binding(call) is not None
