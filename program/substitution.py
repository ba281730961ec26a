"""What one contract says of sizes, in the symbols of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from slipway.program.contract import Contract, TensorSpec
from slipway.program.expressions import (
    Add,
    All,
    AnyOf,
    Comparison,
    Condition,
    Constant,
    Expression,
    FloorDivide,
    Maximum,
    Minimum,
    Modulo,
    Multiply,
    Negation,
    SymbolReference,
    linear_form,
)

__all__ = [
    "Place",
    "UntranslatableError",
    "places",
    "substituted",
    "substituted_condition",
    "translation",
]

Place = tuple[str, int]
"""A dimension of an input: the input's name, and the dimension's index."""


class UntranslatableError(ValueError):
    """A size depends on a symbol that nothing in the other contract determines."""


def substituted(expression: Expression, meaning: Mapping[int, Expression]) -> Expression:
    """Returns an expression with each symbol, by its index, replaced by what it stands for.

    Raises:
      UntranslatableError: a symbol has no meaning.
    """
    match expression:
        case SymbolReference(index, name):
            if index not in meaning:
                raise UntranslatableError(name)
            return meaning[index]
        case Add(operands) | Multiply(operands) | Minimum(operands) | Maximum(operands):
            return type(expression)(tuple(substituted(item, meaning) for item in operands))
        case FloorDivide(left, right) | Modulo(left, right):
            return type(expression)(substituted(left, meaning), substituted(right, meaning))
        case _:
            return expression


def substituted_condition(condition: Condition, meaning: Mapping[int, Expression]) -> Condition:
    """Returns a condition with each symbol replaced. Raises: UntranslatableError."""
    match condition:
        case Comparison(operator, left, right):
            return Comparison(operator, substituted(left, meaning), substituted(right, meaning))
        case All(conditions) | AnyOf(conditions):
            return type(condition)(
                tuple(substituted_condition(item, meaning) for item in conditions)
            )
        case Negation(inner):
            return Negation(substituted_condition(inner, meaning))
        case _:
            raise TypeError(f"not a condition: {condition!r}")


def translation(
    contract: Contract, shapes: Mapping[str, TensorSpec]
) -> tuple[dict[int, Expression], dict[Place, list[Condition]]]:
    """Returns what the symbols of a contract are for calls that another contract describes.

    Args:
      contract: its symbols are translated.
      shapes: of the calls' tensors, over the other contract's symbols. Those inputs of `contract`
        that are not among them, or of another rank there, determine nothing.

    Returns:
      For each symbol that can be translated an expression over the other's symbols; and what must
      hold of the dimensions that determine them: that sizes are of the right form and in range.
    """
    meaning: dict[int, Expression] = {}
    conditions: dict[Place, list[Condition]] = {}
    for index, (place, factor, offset) in _binding_places(contract, shapes).items():
        symbol = contract.symbols[index]
        size = shapes[place[0]].shape[place[1]]
        meaning[index] = _solved(size, factor, offset)
        steps = _plus(size, -offset)  # factor * symbol
        required = conditions.setdefault(place, [])
        if abs(factor) != 1:
            required.append(Comparison("==", Modulo(steps, Constant(abs(factor))), Constant(0)))
        lower, upper = (">=", "<=") if factor > 0 else ("<=", ">=")
        required.append(Comparison(lower, steps, Constant(factor * symbol.minimum)))
        if symbol.maximum is not None:
            required.append(Comparison(upper, steps, Constant(factor * symbol.maximum)))
    return meaning, conditions


def _binding_places(
    contract: Contract, shapes: Mapping[str, TensorSpec]
) -> dict[int, tuple[Place, int, int]]:
    """Returns for each symbol where it is found, as factor*symbol + offset; plain ones first."""
    found: dict[int, tuple[Place, int, int]] = {}
    for place, size in places(contract):
        if place[0] not in shapes or shapes[place[0]].rank <= place[1]:
            continue
        if shapes[place[0]].rank != contract.tensor_inputs[place[0]].rank:
            continue
        form = linear_form(size)
        if form is None:
            continue
        factor, symbol, offset = form
        known = found.get(symbol.index)
        if known is None or ((factor, offset) == (1, 0) and known[1:] != (1, 0)):
            found[symbol.index] = place, factor, offset
    return found


def places(contract: Contract) -> Iterator[tuple[Place, Expression]]:
    """Yields every dimension of every tensor of a call."""
    for name, spec in contract.tensor_inputs.items():
        for dimension, size in enumerate(spec.shape):
            yield (name, dimension), size


def _solved(size: Expression, factor: int, offset: int) -> Expression:
    """Returns (size - offset) / factor, exact where the division leaves nothing."""
    match size:
        case Constant(value) if (value - offset) % factor == 0:
            return Constant((value - offset) // factor)
    form = linear_form(size)
    if form is not None:
        steps, symbol, start = form
        if steps % factor == 0 and (start - offset) % factor == 0:
            scaled: Expression = symbol
            if steps != factor:
                scaled = Multiply((Constant(steps // factor), symbol))
            return _plus(scaled, (start - offset) // factor)
    steps_taken = _plus(size, -offset)
    return steps_taken if factor == 1 else FloorDivide(steps_taken, Constant(factor))


def _plus(size: Expression, offset: int) -> Expression:
    if offset == 0:
        return size
    match size:
        case Constant(value):
            return Constant(value + offset)
        case Add((*operands, Constant(value))) if len(operands) > 1 or value + offset:
            rest = (*operands, Constant(value + offset)) if value + offset else tuple(operands)
            return Add(rest)
        case Add((only, Constant(_))):
            return only
        case _:
            return Add((size, Constant(offset)))
