"""Integer expressions and conditions over the symbols of a contract.

They are trees that are walked, never text that is evaluated. `compile_*` turns a tree into nested
functions once, so that checking a request does not walk it again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "Add",
    "All",
    "AnyOf",
    "Comparison",
    "Condition",
    "Constant",
    "Expression",
    "FloorDivide",
    "Maximum",
    "Minimum",
    "Modulo",
    "Multiply",
    "Negation",
    "SymbolReference",
    "Unknown",
    "Values",
    "children_of",
    "compile_condition",
    "compile_expression",
    "compile_test",
    "holds",
    "linear_form",
    "parts_of",
    "symbols_of",
    "weight_of",
]

Values = Sequence[int] | Mapping[int, int]
"""The values of a contract's symbols, by their indices; of those, at least, that matter."""


class Expression:
    """An integer over symbols. `str()` gives it as a reader would write it: `8*k + 1`."""

    __slots__ = ()

    def evaluate(self, values: Values) -> int:
        """Returns its value where symbol i has `values[i]`.

        Raises:
          ZeroDivisionError: a divisor is zero.
          ValueError: it depends on data (`Unknown`).
        """
        return compile_expression(self)(values)

    def constant_value(self) -> int | None:
        """Returns its value if it is a constant, else None."""
        return self.value if isinstance(self, Constant) else None


@dataclass(frozen=True, slots=True)
class Constant(Expression):
    value: int

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True, slots=True)
class SymbolReference(Expression):
    index: int
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Unknown(Expression):
    """A size that depends on the values of the inputs."""

    def __str__(self) -> str:
        return "?"


@dataclass(frozen=True, slots=True)
class Add(Expression):
    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        text = str(self.operands[0])
        for operand in self.operands[1:]:
            term = str(operand)
            text += f" - {term[1:]}" if term.startswith("-") else f" + {term}"
        return text


@dataclass(frozen=True, slots=True)
class Multiply(Expression):
    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        if len(self.operands) == 2 and self.operands[0] == Constant(-1):
            return f"-{_grouped(self.operands[1])}"
        return "*".join(_grouped(operand) for operand in self.operands)


@dataclass(frozen=True, slots=True)
class FloorDivide(Expression):
    left: Expression
    right: Expression

    def __str__(self) -> str:
        return f"{_grouped(self.left)} // {_grouped(self.right)}"


@dataclass(frozen=True, slots=True)
class Modulo(Expression):
    left: Expression
    right: Expression

    def __str__(self) -> str:
        return f"{_grouped(self.left)} % {_grouped(self.right)}"


@dataclass(frozen=True, slots=True)
class Minimum(Expression):
    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        return f"min({', '.join(map(str, self.operands))})"


@dataclass(frozen=True, slots=True)
class Maximum(Expression):
    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        return f"max({', '.join(map(str, self.operands))})"


def _grouped(expression: Expression) -> str:
    text = str(expression)
    simple = isinstance(expression, SymbolReference | Minimum | Maximum | Unknown) or (
        isinstance(expression, Constant) and expression.value >= 0
    )
    return text if simple else f"({text})"


class Condition:
    """A statement about symbols that holds or does not."""

    __slots__ = ()


_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Comparison(Condition):
    """`left OPERATOR right`, the operator being one of ==, !=, <, <=, >, >=."""

    operator: str
    left: Expression
    right: Expression

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right}"


@dataclass(frozen=True, slots=True)
class All(Condition):
    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        return " and ".join(f"({condition})" for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class AnyOf(Condition):
    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        if sizes := self._sizes():
            return sizes
        return " or ".join(f"({condition})" for condition in self.conditions)

    def _sizes(self) -> str:
        """Returns `size in {1, 2, 4}` where that is all that is said."""
        subjects, values = set(), []
        for condition in self.conditions:
            match condition:
                case Comparison("==", subject, Constant(value)):
                    subjects.add(subject)
                    values.append(str(value))
                case _:
                    return ""
        return f"{subjects.pop()} in {{{', '.join(values)}}}" if len(subjects) == 1 else ""


@dataclass(frozen=True, slots=True)
class Negation(Condition):
    condition: Condition

    def __str__(self) -> str:
        return f"not ({self.condition})"


def children_of(node: Expression | Condition) -> tuple[Expression | Condition, ...]:
    """Returns what an expression or a condition is made of, left to right."""
    match node:
        case Add(operands) | Multiply(operands) | Minimum(operands) | Maximum(operands):
            return operands
        case FloorDivide(left, right) | Modulo(left, right) | Comparison(_, left, right):
            return (left, right)
        case All(conditions) | AnyOf(conditions):
            return conditions
        case Negation(condition):
            return (condition,)
        case _:
            return ()


def parts_of(node: Expression | Condition) -> Iterator[Expression | Condition]:
    """Yields `node` and all that it is made of, left to right."""
    waiting = [node]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += reversed(children_of(part))


def symbols_of(node: Expression | Condition) -> Iterator[SymbolReference]:
    """Yields every reference to a symbol below `node`, left to right, repeats included."""
    return (part for part in parts_of(node) if isinstance(part, SymbolReference))


def weight_of(node: Expression | Condition) -> int:
    """Returns of how many parts an expression or a condition consists, itself included."""
    return sum(1 for _ in parts_of(node))


def linear_form(expression: Expression) -> tuple[int, SymbolReference, int] | None:
    """Returns (factor, symbol, offset) where `expression` is factor*symbol + offset, else None.

    The factor is never zero.
    """
    match expression:
        case SymbolReference():
            return 1, expression, 0
        case Multiply((Constant(factor), inner)) | Multiply((inner, Constant(factor))):
            form = linear_form(inner)
            if form is None or factor == 0:
                return None
            return factor * form[0], form[1], factor * form[2]
        case Add(operands):
            offset, variable = 0, None
            for operand in operands:
                if isinstance(operand, Constant):
                    offset += operand.value
                elif variable is None:
                    variable = linear_form(operand)
                    if variable is None:
                        return None
                else:
                    return None
            return None if variable is None else (variable[0], variable[1], variable[2] + offset)
        case _:
            return None


def _fold(
    expressions: Sequence[Expression], combine: Callable[[int, int], int]
) -> Callable[[Values], int]:
    match expressions:
        # What relations mostly consist of: a symbol and a number.
        case (SymbolReference(index, _), Constant(number)):
            return lambda values: combine(values[index], number)
        case (Constant(number), SymbolReference(index, _)):
            return lambda values: combine(number, values[index])
        case (left, right):
            first, second = compile_expression(left), compile_expression(right)
            return lambda values: combine(first(values), second(values))
    operands = [compile_expression(item) for item in expressions]

    def fold(values: Values) -> int:
        result = operands[0](values)
        for operand in operands[1:]:
            result = combine(result, operand(values))
        return result

    return fold


def compile_expression(expression: Expression) -> Callable[[Values], int]:
    """Returns a function from the symbols' values to the expression's value."""
    match expression:
        case Constant(value):
            return lambda values: value
        case SymbolReference(index, _):
            return lambda values: values[index]
        case Add(operands):
            return _fold(operands, operator.add)
        case Multiply(operands):
            return _fold(operands, operator.mul)
        case Minimum(operands):
            return _fold(operands, min)
        case Maximum(operands):
            return _fold(operands, max)
        case FloorDivide(left, right):
            return _fold((left, right), operator.floordiv)
        case Modulo(left, right):
            return _fold((left, right), operator.mod)
        case _:
            raise ValueError("a size that depends on the inputs' values has no value beforehand")


def holds(condition: Condition, values: Values) -> bool:
    """Returns whether a condition holds; it does not where it divides by zero."""
    return compile_test(condition)(values)


def compile_test(condition: Condition) -> Callable[[Values], bool]:
    """Returns what `holds` does for a condition, as a function, which is faster on many values."""
    compiled = compile_condition(condition)

    def test(values: Values) -> bool:
        try:
            return compiled(values)
        except ZeroDivisionError:
            return False

    return test


def compile_condition(condition: Condition) -> Callable[[Values], bool]:
    """Returns a function from the symbols' values to whether the condition holds."""
    match condition:
        case Comparison(symbol, left, Constant(value)):
            compare = _COMPARISONS[symbol]
            first = compile_expression(left)
            return lambda values: compare(first(values), value)
        case Comparison(symbol, left, right):
            compare = _COMPARISONS[symbol]
            first, second = compile_expression(left), compile_expression(right)
            return lambda values: compare(first(values), second(values))
        case All(conditions):
            each = [compile_condition(item) for item in conditions]
            return lambda values: all(holds(values) for holds in each)
        case AnyOf(conditions):
            each = [compile_condition(item) for item in conditions]
            return lambda values: any(holds(values) for holds in each)
        case Negation(inner):
            holds = compile_condition(inner)
            return lambda values: not holds(values)
        case _:
            raise TypeError(f"not a condition: {condition!r}")
