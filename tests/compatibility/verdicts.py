"""What a contract says of calls, as a table that is kept beside a golden program."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from slipway.program import Contract, ContractViolation, ScalarType

__all__ = ["ask", "make_table"]

_ROWS = 40

Shapes = dict[str, tuple[str, list[int]]]


def make_table(contract: Contract) -> list[dict[str, Any]]:
    """Returns rows with the dtypes and shapes of a call, and what the contract says of it."""
    source = random.Random(0)
    rows = []
    for inputs in itertools.islice(_calls(contract, source), _ROWS):
        rows.append({"inputs": inputs, "verdict": ask(contract, inputs)})
    return rows


def ask(contract: Contract, inputs: Shapes) -> list[int] | list[str]:
    """Returns the values of the symbols, or the kinds of violation, sorted."""
    try:
        given = {name: (ScalarType(dtype), shape) for name, (dtype, shape) in inputs.items()}
        return list(contract.check(given))
    except ContractViolation as error:
        return sorted({violation.code for violation in error.violations})


def _calls(contract: Contract, source: random.Random) -> Iterator[Shapes]:
    near = [
        sorted({max(0, item.minimum - 1), item.minimum, 2, 3, 6, (item.maximum or 9) + 1})
        for item in contract.symbols
    ]
    while True:
        binding = [source.choice(values) for values in near]
        call = {
            name: (spec.dtype.value, [size.evaluate(binding) for size in spec.shape])
            for name, spec in contract.tensor_inputs.items()
        }
        yield _disturbed(call, source) if source.random() < 0.3 else call


def _disturbed(call: Shapes, source: random.Random) -> Shapes:
    name = source.choice(list(call))
    dtype, shape = call[name]
    changed: Sequence[tuple[str, list[int]]] = (
        ("float64" if dtype != "float64" else "int8", shape),
        (dtype, [*shape, 1]),
        (dtype, [size + 1 for size in shape]),
    )
    if source.random() < 0.2:
        return {other: value for other, value in call.items() if other != name}
    return {**call, name: source.choice(changed)}
