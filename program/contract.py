"""The contract of a method, and the check of a call's shapes against it, on integers alone.

A contract is exact: a call that satisfies it may be given to the graph, and any other may not. The
semantics follow the reading of symbolic shapes in ONNX's shape annotations: a symbol stands for one
number throughout a call, whichever input shows it first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from slipway.program.batching import Batching, check_batching
from slipway.program.errors import ContractViolation, CorruptProgramError
from slipway.program.expressions import (
    Condition,
    Constant,
    Expression,
    SymbolReference,
    Unknown,
    compile_condition,
    compile_expression,
    holds,
    linear_form,
)
from slipway.program.scalar_types import ScalarType
from slipway.program.sizes import Interval, SizeError, check_magnitude, interval_of
from slipway.program.trees import Tree

__all__ = [
    "DEFAULT_METHOD",
    "Contract",
    "InputSpec",
    "OutputSpec",
    "PythonValue",
    "Relation",
    "Symbol",
    "TensorInputs",
    "TensorSpec",
    "UnboundSymbolError",
]

DEFAULT_METHOD = "forward"
"""The method of a program that has only one, and the one that calling a program calls."""

PythonValue = None | bool | int | float | str
"""A value that is part of a call but no tensor."""

TensorInputs = Mapping[str, tuple[ScalarType, Sequence[int]]]
"""The dtype and shape of each tensor of a call, by the input's name."""


class UnboundSymbolError(ValueError):
    """A contract has a symbol that no input's shape determines."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named dynamic dimension.

    Attributes:
      name: as the user declared it.
      minimum: the smallest legal value, included.
      maximum: the largest legal value, included; None for no bound.
    """

    name: str
    minimum: int
    maximum: int | None

    @property
    def allowed(self) -> str:
        """Returns the range as a reader would write it: `1..64`."""
        return f"{self.minimum}..{'' if self.maximum is None else self.maximum}"

    @property
    def interval(self) -> Interval:
        """Returns the range as a pair; its end is infinity where there is no bound."""
        return self.minimum, math.inf if self.maximum is None else self.maximum


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The dtype of a tensor, and each of its dimensions over the contract's symbols."""

    dtype: ScalarType
    shape: tuple[Expression, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.value}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A leaf of the input tree: a tensor, or (`tensor` is None) exactly the value `constant`."""

    name: str
    tensor: TensorSpec | None = None
    constant: PythonValue = None


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """A leaf of the output tree: a tensor, an integer over symbols, or else `constant`."""

    name: str
    tensor: TensorSpec | None = None
    integer: Expression | None = None
    constant: PythonValue = None


@dataclass(frozen=True, slots=True)
class Relation:
    """A condition over symbols, and the `FILE:LINE` of the model that relies on it (or "")."""

    condition: Condition
    source: str = ""

    def __str__(self) -> str:
        return str(self.condition)


@dataclass(frozen=True)
class Contract:
    """Everything a caller must satisfy for a method's graph to be valid.

    Attributes:
      method: the method's name, "forward" unless the program has several.
      symbols: the dynamic dimensions; expressions refer to them by index.
      inputs: the leaves of the input tree, in order.
      input_tree: a tuple of (positional arguments, keyword arguments).
      parameters: the names of the positional arguments.
      outputs: the leaves of the output tree, in order.
      output_tree: how the results are put together.
      relations: conditions that must all hold, evaluated in order.
      batch_symbol: the index of the symbol that is the first dimension of every tensor, or None.
      batching: how calls can be joined into one, row by row independent of each other, or None.
      contiguous: whether every tensor must lie in memory as a new one of its shape does, since the
        model asked how they lie. Tensors that are made for a call always do.
      notes: for people: what was accepted or left unchecked when the program was made.

    Raises:
      UnboundSymbolError: no input's shape determines one of the symbols.
      SizeError: a size can become too large a number, or an output can have no size at all.
      BatchingError: `batching` does not go with the rest.
    """

    method: str
    symbols: tuple[Symbol, ...]
    inputs: tuple[InputSpec, ...]
    input_tree: Tree
    parameters: tuple[str, ...]
    outputs: tuple[OutputSpec, ...]
    output_tree: Tree
    relations: tuple[Relation, ...] = ()
    batch_symbol: int | None = None
    contiguous: bool = False
    notes: tuple[str, ...] = ()
    batching: Batching | None = None

    def __post_init__(self) -> None:
        _check_sizes(self)
        self._check  # noqa: B018  (a contract that cannot be checked must not come to be)
        if self.batching is not None:
            check_batching(self, self.batching)

    @cached_property
    def tensor_inputs(self) -> dict[str, TensorSpec]:
        """Returns the tensors that a call consists of, by name, in order."""
        return {spec.name: spec.tensor for spec in self.inputs if spec.tensor is not None}

    @cached_property
    def tensor_outputs(self) -> dict[str, TensorSpec]:
        """Returns the tensors that a call gives, by name, in order."""
        return {spec.name: spec.tensor for spec in self.outputs if spec.tensor is not None}

    @cached_property
    def _check(self) -> Callable[[TensorInputs], tuple[int, ...] | None]:
        return _compile_check(self)

    def binding(self, inputs: TensorInputs) -> tuple[int, ...] | None:
        """Returns the value of each symbol that a call's shapes imply; None if it is not legal."""
        return self._check(inputs)

    def check(self, inputs: TensorInputs) -> tuple[int, ...]:
        """Returns the value of each symbol that the inputs' shapes imply.

        Args:
          inputs: dtype and shape of each tensor of the call, by name.

        Raises:
          ContractViolation: naming every way in which the call breaks the contract.
        """
        binding = self._check(inputs)
        if binding is not None:
            return binding
        # Not at the top: a process that never refuses a call has no use for it.
        from slipway.program.explanation import explain

        raise ContractViolation(self.method, explain(self, inputs))

    def is_legal(self, binding: Sequence[int]) -> bool:
        """Returns whether values of the symbols are within their ranges and satisfy the relations.

        Args:
          binding: a value for each symbol, in order.
        """
        for symbol, value in zip(self.symbols, binding, strict=True):
            if value < symbol.minimum or (symbol.maximum is not None and value > symbol.maximum):
                return False
        return all(holds(item.condition, binding) for item in self.relations)

    def output_shapes(self, binding: Sequence[int]) -> dict[str, tuple[int | None, ...]]:
        """Returns the shape of each tensor output; None for a size that depends on data.

        Raises:
          CorruptProgramError: a size divides by zero, as that of no program does that tracing gave.
        """
        try:
            return {
                name: tuple(
                    None if isinstance(size, Unknown) else size.evaluate(binding)
                    for size in spec.shape
                )
                for name, spec in self.tensor_outputs.items()
            }
        except ZeroDivisionError:
            raise CorruptProgramError(
                f"an output of method '{self.method}' has a size that divides by zero for a call "
                f"that the contract allows, with the symbols {list(binding)}; export it again"
            ) from None


def _check_sizes(contract: Contract) -> None:
    """Raises SizeError for a size that can become too large, and for an output that has none.

    An output has no size if it can be seen from the symbols' ranges that no call gives it one.
    """
    ranges = [symbol.interval for symbol in contract.symbols]
    for name, spec in contract.tensor_inputs.items():
        for dimension, size in enumerate(spec.shape):
            _check_size(size, f"input '{name}' dimension {dimension}")
    for output in contract.outputs:
        if output.integer is not None:
            _check_size(output.integer, f"output '{output.name}'", ranges)
        for dimension, size in enumerate(output.tensor.shape if output.tensor else ()):
            where = f"output '{output.name}' dimension {dimension}"
            _, high = _check_size(size, where, ranges)
            if high < 0:
                raise SizeError(f"{where}: it is negative, whatever a call is")
    for number, relation in enumerate(contract.relations):
        _check_size(relation.condition, f"relation {number}")


def _check_size(
    size: Expression | Condition, where: str, ranges: Sequence[Interval] | None = None
) -> Interval:
    """Returns in what range a size is; anything, where there are no ranges to tell it from."""
    try:
        check_magnitude(size)
        if ranges is None or isinstance(size, Condition):
            return -math.inf, math.inf
        return interval_of(size, ranges)
    except SizeError as error:
        raise SizeError(f"{where}: {error}") from None


@dataclass(frozen=True, slots=True)
class Binder:
    """The dimension that determines a symbol: its size is factor*symbol + offset."""

    symbol: int
    input: str
    dimension: int
    factor: int
    offset: int


def find_binders(contract: Contract) -> list[Binder]:
    """Returns for each symbol, in order, the dimension that determines it.

    A dimension that is the symbol itself comes before one that is derived from it, since then no
    value of the size has to be refused for not being divisible.

    Raises:
      UnboundSymbolError: no dimension determines a symbol.
    """
    found: dict[int, Binder] = {}
    for name, spec in contract.tensor_inputs.items():
        for dimension, size in enumerate(spec.shape):
            form = linear_form(size)
            if form is None:
                continue
            factor, symbol, offset = form
            previous = found.get(symbol.index)
            plain = factor == 1 and offset == 0
            if previous is None or (plain and (previous.factor, previous.offset) != (1, 0)):
                found[symbol.index] = Binder(symbol.index, name, dimension, factor, offset)
    for index, declared in enumerate(contract.symbols):
        if index not in found:
            raise UnboundSymbolError(
                f"no dimension of any input determines the symbol '{declared.name}'"
            )
    return [found[index] for index in range(len(contract.symbols))]


def _compile_check(contract: Contract) -> Callable[[TensorInputs], tuple[int, ...] | None]:
    """Returns a function that gives the binding of a legal call, and None for any other.

    It runs for every request, so everything that it needs lies ready in tuples: what each input
    must be, where each symbol is read from, and what then must agree.
    """
    binders = find_binders(contract)
    inputs = contract.tensor_inputs
    positions = {name: position for position, name in enumerate(inputs)}
    determining = {(item.input, item.dimension) for item in binders}
    headers = [
        (
            name,
            spec.dtype,
            spec.rank,
            [(at, size.value) for at, size in enumerate(spec.shape) if isinstance(size, Constant)],
        )
        for name, spec in inputs.items()
    ]
    reads = [
        (
            positions[item.input],
            item.dimension,
            None if (item.factor, item.offset) == (1, 0) else (item.factor, item.offset),
            *contract.symbols[item.symbol].interval,
        )
        for item in binders
    ]
    repeats = []
    derived = []
    for name, spec in inputs.items():
        for dimension, size in enumerate(spec.shape):
            if (name, dimension) in determining or isinstance(size, Constant):
                continue  # a dimension that determines a symbol cannot contradict it
            if isinstance(size, SymbolReference):
                repeats.append((positions[name], dimension, size.index))
            else:
                derived.append((positions[name], dimension, compile_expression(size)))
    conditions = [compile_condition(relation.condition) for relation in contract.relations]
    count = len(headers)

    def check(given: TensorInputs) -> tuple[int, ...] | None:
        if len(given) != count:
            return None
        shapes = []
        for name, dtype, rank, static in headers:
            if name not in given:
                return None
            actual_dtype, shape = given[name]
            if actual_dtype is not dtype or len(shape) != rank:
                return None
            for dimension, length in static:
                if shape[dimension] != length:
                    return None
            shapes.append(shape)
        values = []
        for position, dimension, form, minimum, maximum in reads:
            value = shapes[position][dimension]
            if form is not None:
                value, remainder = divmod(value - form[1], form[0])
                if remainder:
                    return None
            if not minimum <= value <= maximum:
                return None
            values.append(value)
        for position, dimension, symbol in repeats:
            if shapes[position][dimension] != values[symbol]:
                return None
        try:
            for position, dimension, size_of in derived:
                if shapes[position][dimension] != size_of(values):
                    return None
            for holds in conditions:
                if not holds(values):
                    return None
        except ZeroDivisionError:
            return None
        return tuple(values)

    return check
