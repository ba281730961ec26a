"""Symbolic integers of torch's shape environment as expressions of a contract."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
from torch.utils._sympy import functions as torch_functions

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
)

__all__ = ["InexpressibleError", "to_condition", "to_expression"]

_COMPARISONS: dict[type[sympy.Basic], str] = {
    sympy.Eq: "==",
    sympy.Ne: "!=",
    sympy.StrictLessThan: "<",
    sympy.LessThan: "<=",
    sympy.StrictGreaterThan: ">",
    sympy.GreaterThan: ">=",
}

_LARGEST_POWER = 8
_LARGEST_FACTOR = 1 << 12


class InexpressibleError(ValueError):
    """The contract language has no form for a symbolic value."""


def to_expression(value: sympy.Basic, symbols: Mapping[sympy.Symbol, int]) -> Expression:
    """Returns the expression for a symbolic integer.

    Args:
      value: over the given symbols.
      symbols: the index of each symbol in the contract.

    Raises:
      InexpressibleError: the contract language has no form for it.
    """

    def convert(item: sympy.Basic) -> Expression:
        return to_expression(item, symbols)

    match value:
        case sympy.Integer():
            return Constant(int(value))
        case sympy.Symbol() if value in symbols:
            return SymbolReference(symbols[value], value.name)
        case sympy.Add():
            return Add(tuple(convert(item) for item in value.as_ordered_terms()))
        case sympy.Mul():
            return Multiply(tuple(convert(item) for item in value.as_ordered_factors()))
        case sympy.Pow(args=(base, sympy.Integer() as power)) if 2 <= int(power) <= _LARGEST_POWER:
            return Multiply((convert(base),) * int(power))
        case torch_functions.FloorDiv() | torch_functions.CleanDiv():
            return FloorDivide(*map(convert, value.args))
        case torch_functions.Mod() | torch_functions.PythonMod() | sympy.Mod():
            return Modulo(*map(convert, value.args))
        case torch_functions.ModularIndexing(args=(base, divisor, modulus)):
            return Modulo(FloorDivide(convert(base), convert(divisor)), convert(modulus))
        case (
            torch_functions.FloorToInt()
            | torch_functions.CeilToInt()
            | torch_functions.TruncToInt()
        ):
            numerator, denominator = _ratio(value.args[0])
            if isinstance(value, torch_functions.CeilToInt):
                numerator += denominator - 1
            elif isinstance(value, torch_functions.TruncToInt) and not numerator.is_nonnegative:
                raise InexpressibleError(f"{value} has no form in the contract language")
            quotient = FloorDivide(convert(numerator), Constant(denominator))
            return quotient if denominator > 1 else quotient.left
        case torch_functions.Max() | sympy.Max():
            return Maximum(tuple(map(convert, sorted(value.args, key=str))))
        case torch_functions.Min() | sympy.Min():
            return Minimum(tuple(map(convert, sorted(value.args, key=str))))
        case _:
            raise InexpressibleError(f"{value} has no form in the contract language")


def _ratio(fraction: sympy.Basic) -> tuple[sympy.Basic, int]:
    """Returns the numerator and the denominator of a size that Python divided, or scaled.

    Both are so small beside 2**53 that rounding to a double moves no quotient past a whole number.

    Raises:
      InexpressibleError: it is something else, or scaled by what no double is, such as 0.3.
    """
    match fraction:
        case torch_functions.ToFloat(args=(whole,)):
            return whole, 1
        case torch_functions.IntTrueDiv(args=(whole, sympy.Integer(is_positive=True) as divisor)):
            return whole, int(divisor)
        case torch_functions.FloatTrueDiv(
            args=(torch_functions.ToFloat(args=(whole,)), sympy.Float(is_zero=False) as divisor)
        ):
            denominator, factor = float(divisor).as_integer_ratio()
        case sympy.Mul(args=(sympy.Float() as scale, torch_functions.ToFloat(args=(whole,)))):
            factor, denominator = float(scale).as_integer_ratio()
        case _:
            raise InexpressibleError(f"{fraction} has no form in the contract language")
    if max(abs(factor), abs(denominator)) > _LARGEST_FACTOR:
        raise InexpressibleError(f"{fraction} has no form in the contract language")
    if denominator < 0:
        factor, denominator = -factor, -denominator
    return factor * whole, denominator


def to_condition(value: sympy.Basic, symbols: Mapping[sympy.Symbol, int]) -> Condition:
    """Returns the condition for a symbolic truth value. Raises: InexpressibleError."""
    for kind, operator in _COMPARISONS.items():
        if isinstance(value, kind):
            left, right = value.args
            return _tidy(operator, to_expression(left, symbols), to_expression(right, symbols))
    match value:
        case sympy.And():
            return All(tuple(to_condition(item, symbols) for item in sorted(value.args, key=str)))
        case sympy.Or():
            return AnyOf(tuple(to_condition(item, symbols) for item in sorted(value.args, key=str)))
        case sympy.Not():
            return Negation(to_condition(value.args[0], symbols))
        case _:
            raise InexpressibleError(f"{value} has no form in the contract language")


_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}

# What it is to a number to equal the minimum of itself and others, or not to; and the maximum.
_WITHIN = {"==": "<=", "!=": ">"}
_BEYOND = {"==": ">=", "!=": "<"}


def _tidy(operator: str, left: Expression, right: Expression) -> Comparison:
    """Returns the comparison as people write it.

    A constant is on its right, and neither side is the minimum or maximum of the other and more.
    """
    if (isinstance(left, Constant) and not isinstance(right, Constant)) or (
        isinstance(left, Minimum | Maximum) and right in left.operands
    ):
        operator, left, right = _MIRRORED[operator], right, left
    if operator in _WITHIN and isinstance(right, Minimum | Maximum) and left in right.operands:
        others = tuple(item for item in right.operands if item != left)
        operator = _WITHIN[operator] if isinstance(right, Minimum) else _BEYOND[operator]
        right = others[0] if len(others) == 1 else type(right)(others)
    return Comparison(operator, left, right)
