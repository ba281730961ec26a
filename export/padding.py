"""Tries whether inputs can be padded, so that calls of different sizes can be joined.

Results of padded calls, cut back, are compared with those of the calls as they were, on batches in
which other rows have their full size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from slipway.export.resizing import binding_of
from slipway.export.rows import Tolerance, as_drawn, first_difference, join, varied
from slipway.program.batching import Batching, Padding, PaddingNumber
from slipway.program.contract import Contract, TensorSpec
from slipway.program.expressions import SymbolReference
from slipway.program.method import Method

__all__ = ["PaddingTrial", "padding_of"]

_ELEMENTS = 1 << 18
"""Of the inputs of a batch that is tried."""


def padding_of(contract: Contract, symbol: str, values: Mapping[str, PaddingNumber]) -> Padding:
    """Returns the padding that a spec describes, in the order of the contract's inputs.

    Args:
      contract: of the method.
      symbol: to be padded along.
      values: by input; an integer stands for a number with a fraction too.
    """

    def number(name: str) -> PaddingNumber:
        value, spec = values[name], contract.tensor_inputs.get(name)
        fractional = spec is not None and "float" in spec.dtype.value
        return float(value) if fractional and type(value) is int else value

    order = [*contract.tensor_inputs, *values]
    return Padding(symbol, {name: number(name) for name in dict.fromkeys(order) if name in values})


class PaddingTrial:
    """What is tried of one method whose calls can be joined."""

    def __init__(self, method: Method, batching: Batching, example: Sequence[object]) -> None:
        """Nothing is run yet.

        Args:
          method: of a program made from its protobuf form.
          batching: its rows are known to be independent of each other.
          example: the leaves of the example call.
        """
        self._method, self._contract = method, method.contract
        self._batching = batching
        self._example = [leaf for leaf in example if isinstance(leaf, torch.Tensor)]
        self._usual = binding_of(self._contract, example)
        self._names = [symbol.name for symbol in self._contract.symbols]
        self._generator = torch.Generator().manual_seed(batching.evidence.seed)

    def problem(self, padding: Padding) -> str | None:
        """Returns what shows that inputs cannot be padded so; None if nothing does."""
        symbol = self._names.index(padding.symbol)
        tried = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for short, long in self._sizes(symbol):
                tried = True
                try:
                    differing = self._differing(padding, symbol, short, long)
                except Exception as error:
                    differing = f"it fails with {type(error).__name__}: {error}"
                if differing is not None:
                    return f"where {padding.symbol} = {short} is padded to {long}, {differing}"
        return None if tried else "there are no two sizes that could be tried"

    def _sizes(self, symbol: int) -> Iterator[tuple[int, int]]:
        """Yields pairs of legal sizes, the smaller one first."""
        declared = self._contract.symbols[symbol]
        largest = math.inf if declared.maximum is None else declared.maximum
        usual, least = self._usual[symbol], max(declared.minimum, 1)
        for short, long in ((usual, usual + 1), (least, usual), (usual, 2 * usual + 3)):
            bindings = [self._binding(symbol, size) for size in (short, long)]
            if (
                short < long <= largest
                and all(map(self._contract.is_legal, bindings))
                and 3 * sum(map(math.prod, self._shapes(bindings[1]))) <= _ELEMENTS
            ):
                yield short, long

    def _binding(self, symbol: int, size: int) -> tuple[int, ...]:
        binding = list(self._usual)
        binding[symbol] = size
        binding[self._names.index(self._batching.symbol)] = 1
        return tuple(binding)

    def _shapes(self, binding: Sequence[int]) -> list[list[int]]:
        return [
            [size.evaluate(binding) for size in spec.shape]
            for spec in self._contract.tensor_inputs.values()
        ]

    def _row(self, binding: Sequence[int]) -> list[torch.Tensor]:
        # Masks and indices are the example's own: of others the model may say that they are none.
        return [
            (varied if tensor.is_floating_point() else as_drawn)(tensor, shape, self._generator)
            for tensor, shape in zip(self._example, self._shapes(binding), strict=True)
        ]

    def _differing(self, padding: Padding, symbol: int, short: int, long: int) -> str | None:
        rows = [self._row(self._binding(symbol, size)) for size in (short, long, short)]
        alone = [self._method.run(row) for row in rows]
        padded = [self._padded(row, padding, symbol, long) for row in rows]
        joined = self._method.run(join(padded, list(self._batching.inputs.values())))
        tolerance = Tolerance(self._batching.atol, self._batching.rtol)
        dimensions = self._batching.outputs
        for place, expected in enumerate(alone):
            actual = [
                _cut(tensor.narrow(dimension, place, 1), spec, symbol, (short, long)[place % 2])
                for tensor, dimension, spec in zip(
                    joined, dimensions, self._contract.tensor_outputs.values(), strict=True
                )
            ]
            found = first_difference(actual, expected, dimensions, tolerance)
            if found is not None:
                name = list(self._contract.tensor_outputs)[found[0]]
                return f"output '{name}' is not what it is without"
        return None

    def _padded(
        self, row: Sequence[torch.Tensor], padding: Padding, symbol: int, size: int
    ) -> list[torch.Tensor]:
        padded = []
        for tensor, (name, spec) in zip(row, self._contract.tensor_inputs.items(), strict=True):
            shape = [
                size if _is(dimension, symbol) else length
                for dimension, length in zip(spec.shape, tensor.shape, strict=True)
            ]
            if shape != list(tensor.shape):
                whole = torch.full(shape, padding.values[name], dtype=tensor.dtype)
                whole[tuple(slice(length) for length in tensor.shape)] = tensor
                tensor = whole
            padded.append(tensor)
        return padded


def _cut(tensor: torch.Tensor, spec: TensorSpec, symbol: int, size: int) -> torch.Tensor:
    """Returns the part of an output that belongs to a call of a smaller size."""
    return tensor[
        tuple(slice(size if _is(dimension, symbol) else None) for dimension in spec.shape)
    ]


def _is(size: object, symbol: int) -> bool:
    return isinstance(size, SymbolReference) and size.index == symbol
