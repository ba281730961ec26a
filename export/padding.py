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

    def problem(self, paddings: Sequence[Padding]) -> str | None:
        """Returns what shows that inputs cannot be padded so, along several symbols at once.

        Returns None if nothing does.
        """
        symbols = [self._names.index(padding.symbol) for padding in paddings]
        tried = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for pairs in zip(*map(self._sizes, symbols), strict=False):
                short, long = (
                    dict(zip(symbols, sizes, strict=True)) for sizes in zip(*pairs, strict=True)
                )
                if not all(map(self._may_try, self._mixed(short, long))):
                    continue
                tried = True
                try:
                    differing = self._differing(paddings, short, long)
                except Exception as error:
                    differing = f"it fails with {type(error).__name__}: {error}"
                if differing is not None:
                    where = " and ".join(
                        f"{self._names[symbol]} = {short[symbol]} is padded to {long[symbol]}"
                        for symbol in symbols
                    )
                    return f"where {where}, {differing}"
        return None if tried else "there are no two sizes that could be tried"

    def _sizes(self, symbol: int) -> Iterator[tuple[int, int]]:
        """Yields pairs of legal sizes, the smaller one first."""
        usual, least = self._usual[symbol], max(self._contract.symbols[symbol].minimum, 1)
        for short, long in ((usual, usual + 1), (least, usual), (usual, 2 * usual + 3)):
            if short < long and all(self._may_try({symbol: size}) for size in (short, long)):
                yield short, long

    def _mixed(self, short: Mapping[int, int], long: Mapping[int, int]) -> list[dict[int, int]]:
        """Returns the sizes of the calls that are joined: in all symbols, and in each by itself."""
        return [dict(short), dict(long), *({**long, symbol: short[symbol]} for symbol in short)]

    def _may_try(self, sizes: Mapping[int, int]) -> bool:
        binding = self._binding(sizes)
        elements = 3 * sum(map(math.prod, self._shapes(binding)))
        return self._contract.is_legal(binding) and elements <= _ELEMENTS

    def _binding(self, sizes: Mapping[int, int]) -> tuple[int, ...]:
        binding = list(self._usual)
        for symbol, size in sizes.items():
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

    def _differing(
        self, paddings: Sequence[Padding], short: Mapping[int, int], long: Mapping[int, int]
    ) -> str | None:
        mixed = self._mixed(short, long)
        rows = [self._row(self._binding(sizes)) for sizes in mixed]
        alone = [self._method.run(row) for row in rows]
        padded = [self._padded(row, paddings, long) for row in rows]
        joined = self._method.run(join(padded, list(self._batching.inputs.values())))
        tolerance = Tolerance(self._batching.atol, self._batching.rtol)
        dimensions = self._batching.outputs
        for place, (expected, sizes) in enumerate(zip(alone, mixed, strict=True)):
            actual = [
                _cut(tensor.narrow(dimension, place, 1), spec, sizes)
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
        self, row: Sequence[torch.Tensor], paddings: Sequence[Padding], sizes: Mapping[int, int]
    ) -> list[torch.Tensor]:
        padded = []
        for tensor, (name, spec) in zip(row, self._contract.tensor_inputs.items(), strict=True):
            # One after the other, as a server does.
            for padding, (symbol, size) in zip(paddings, sizes.items(), strict=True):
                shape = [
                    size if _symbol(dimension) == symbol else length
                    for dimension, length in zip(spec.shape, tensor.shape, strict=True)
                ]
                if shape != list(tensor.shape):
                    whole = torch.full(shape, padding.values[name], dtype=tensor.dtype)
                    whole[tuple(slice(length) for length in tensor.shape)] = tensor
                    tensor = whole
            padded.append(tensor)
        return padded


def _cut(tensor: torch.Tensor, spec: TensorSpec, sizes: Mapping[int, int]) -> torch.Tensor:
    """Returns the part of an output that belongs to a call of smaller sizes."""
    symbols = map(_symbol, spec.shape)
    return tensor[tuple(slice(None if item is None else sizes.get(item)) for item in symbols)]


def _symbol(size: object) -> int | None:
    """Returns the symbol that a size is; None where it is something else."""
    return size.index if isinstance(size, SymbolReference) else None
