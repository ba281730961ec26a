"""How calls of a method can be joined into one call, and its results be split again.

A program says so of itself: the exporter has tried whether the rows of a batch are independent of
each other. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slipway.program.expressions import (
    Condition,
    Expression,
    SymbolReference,
    Unknown,
    symbols_of,
)
from slipway.program.scalar_types import ScalarType

if TYPE_CHECKING:
    from slipway.program.contract import Contract, TensorSpec

__all__ = [
    "Batching",
    "BatchingError",
    "BatchingEvidence",
    "Padding",
    "PaddingNumber",
    "batch_dimension",
    "batching_problem",
    "check_batching",
    "padding_problem",
]

PaddingNumber = bool | int | float
"""What an input is padded with, of the kind that its dtype holds."""


class BatchingError(ValueError):
    """What is said of joining calls does not go with the contract's symbols and shapes."""


@dataclass(frozen=True, slots=True)
class BatchingEvidence:
    """What the exporter tried, for people.

    Attributes:
      batch_sizes: how many rows the batches had, ascending.
      settings: for how many settings of the other symbols.
      comparisons: how many rows of batches were compared with what they give alone.
      perturbations: in how many batches a row was replaced by extreme values, not-a-number among
        them, and the other rows were compared with what they gave before.
      seed: of the random numbers.
    """

    batch_sizes: tuple[int, ...]
    settings: int
    comparisons: int
    perturbations: int
    seed: int

    def __str__(self) -> str:
        settings = "1 setting" if self.settings == 1 else f"{self.settings} settings"
        return (
            f"batches of {', '.join(map(str, self.batch_sizes))} rows, {settings} of other "
            f"symbols: {self.comparisons} rows compared, {self.perturbations} perturbed"
        )


@dataclass(frozen=True, slots=True)
class Padding:
    """Calls of different sizes can be joined, since their inputs may be padded.

    An input is made longer by appending its value along every dimension that is the symbol; each
    output is cut back to the true size along every dimension that is the symbol.

    Attributes:
      symbol: whose size may be raised, within the contract.
      values: what to append, for each input that has the dimension. A mask has false, or 0.
    """

    symbol: str
    values: Mapping[str, PaddingNumber] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Batching:
    """Calls may be joined, all their tensors along one dimension each.

    Their other symbols must have the same values, unless there is a padding for them, and the
    joined call must satisfy the contract. Row by row it gives what the calls would give alone:
    integers and booleans exactly, other numbers to within `atol + rtol * m`, where m is the largest
    magnitude in what the row gives for the output.

    Example:

        Batching("batch", {"x": 0}, (0,), atol=1e-5, rtol=1e-4, evidence=evidence)

    Attributes:
      symbol: counts the rows. No relation, and no other dimension, depends on it.
      inputs: for each of the contract's `tensor_inputs`, in order, which dimension is the symbol.
      outputs: the same for each of its `tensor_outputs`.
      atol: absolute tolerance.
      rtol: tolerance relative to the largest magnitude in the row's output.
      evidence: what the exporter tried.
      paddings: at most one for a symbol.
    """

    symbol: str
    inputs: Mapping[str, int] = field(hash=False)
    outputs: tuple[int, ...]
    atol: float
    rtol: float
    evidence: BatchingEvidence
    paddings: tuple[Padding, ...] = ()

    def __str__(self) -> str:
        text = (
            f"over {self.symbol}, rows to within {self.atol:g} + {self.rtol:g} * their largest "
            "magnitude"
        )
        for padding in self.paddings:
            values = ", ".join(f"{name} with {value}" for name, value in padding.values.items())
            text += f"; {padding.symbol} may be padded: {values}"
        return text


def check_batching(contract: Contract, batching: Batching) -> None:
    """Raises BatchingError unless a batching goes with the contract that it is of."""
    indices = {symbol.name: index for index, symbol in enumerate(contract.symbols)}
    if batching.symbol not in indices:
        raise BatchingError(f"the batching's symbol '{batching.symbol}' is not in the contract")
    symbol = indices[batching.symbol]
    problem = batching_problem(contract, symbol)
    if problem is not None:
        raise BatchingError(f"calls cannot be joined over '{batching.symbol}': {problem}")
    for what, specs, given in (
        ("inputs", contract.tensor_inputs, dict(batching.inputs)),
        ("outputs", contract.tensor_outputs, dict(enumerate(batching.outputs))),
    ):
        dimensions = [batch_dimension(spec, symbol) for spec in specs.values()]
        if list(given.values()) != dimensions or (what == "inputs" and list(given) != list(specs)):
            raise BatchingError(
                f"the batching's dimensions of {what} are {list(given.values())}; "
                f"'{batching.symbol}' is {dimensions}"
            )
    for tolerance in (batching.atol, batching.rtol):
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise BatchingError(f"a tolerance of the batching is {tolerance}")
    padded = [padding.symbol for padding in batching.paddings]
    if len(set(padded)) != len(padded):
        raise BatchingError("the batching has two paddings of one symbol")
    for padding in batching.paddings:
        if padding.symbol not in indices or padding.symbol == batching.symbol:
            raise BatchingError(f"'{padding.symbol}' is not another symbol that can be padded")
        problem = padding_problem(contract, indices[padding.symbol], padding.values)
        if problem is not None:
            raise BatchingError(f"inputs cannot be padded along '{padding.symbol}': {problem}")


def batch_dimension(spec: TensorSpec, symbol: int) -> int | None:
    """Returns the one dimension of a tensor that is the symbol, or None.

    Args:
      spec: the tensor.
      symbol: its index. None too if another dimension depends on it, or the size is not known.
    """
    found = [place for place, size in enumerate(spec.shape) if _depends(size, symbol)]
    unknown = any(isinstance(size, Unknown) for size in spec.shape)
    if len(found) != 1 or unknown or not isinstance(spec.shape[found[0]], SymbolReference):
        return None
    return found[0]


def batching_problem(contract: Contract, symbol: int) -> str | None:
    """Returns why calls cannot be joined over a symbol, for their shapes alone; None if they can.

    Args:
      contract: of the method.
      symbol: its index.
    """
    declared = contract.symbols[symbol]
    if declared.minimum > 1:
        return f"it is {declared.allowed}, and a call of one row must be legal"
    if declared.maximum is not None and declared.maximum < 2:
        return f"it is {declared.allowed}, and a batch has two rows at least"
    if not contract.tensor_outputs:
        return "the method gives no tensor"
    for role, specs in (("input", contract.tensor_inputs), ("output", contract.tensor_outputs)):
        for name, spec in specs.items():
            if batch_dimension(spec, symbol) is None:
                return (
                    f"{role} '{name}' is {spec}; one of its dimensions must be exactly "
                    f"{declared.name}, and no other may depend on it"
                )
    for output in contract.outputs:
        if output.integer is not None and _depends(output.integer, symbol):
            return f"output '{output.name}' is the integer {output.integer}"
    for relation in contract.relations:
        if _depends(relation.condition, symbol):
            return f"the relation {relation} depends on it"
    return None


def padding_problem(
    contract: Contract, symbol: int, values: Mapping[str, PaddingNumber]
) -> str | None:
    """Returns why inputs cannot be padded along a symbol, for their shapes alone, or None.

    Args:
      contract: of the method.
      symbol: its index.
      values: by input.
    """
    for role, specs in (("input", contract.tensor_inputs), ("output", contract.tensor_outputs)):
        for name, spec in specs.items():
            if any(
                _depends(size, symbol) and not isinstance(size, SymbolReference)
                for size in spec.shape
            ):
                return f"a dimension of {role} '{name}', {spec}, is derived from it"
    for output in contract.outputs:
        if output.integer is not None and _depends(output.integer, symbol):
            return f"output '{output.name}' is the integer {output.integer}"
    for relation in contract.relations:
        if _depends(relation.condition, symbol):
            return f"the relation {relation} depends on it"
    having = dict(_inputs_with(contract, symbol))
    if list(values) != list(having):
        return f"values are given for {list(values)}; the inputs that have it are {list(having)}"
    for name, value in values.items():
        if not _holds(having[name].dtype, value):
            return f"input '{name}' is {having[name].dtype.value}, which does not hold {value!r}"
    return None


def _depends(node: Expression | Condition, symbol: int) -> bool:
    return any(reference.index == symbol for reference in symbols_of(node))


def _holds(dtype: ScalarType, value: PaddingNumber) -> bool:
    """Returns whether a number is of the kind of a dtype, and an integer in its range."""
    if dtype is ScalarType.BOOL:
        return type(value) is bool
    if "int" not in dtype.value:
        return type(value) is float and math.isfinite(value)
    bits = 8 * dtype.item_size
    lowest, highest = (
        (0, 2**bits) if dtype.value.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    )
    return type(value) is int and lowest <= value < highest


def _inputs_with(contract: Contract, symbol: int) -> Iterator[tuple[str, TensorSpec]]:
    for name, spec in contract.tensor_inputs.items():
        if any(_depends(size, symbol) for size in spec.shape):
            yield name, spec
