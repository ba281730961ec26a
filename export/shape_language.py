"""Shapes and relations written as text: "batch, 8*k, 256" and "tokens == heads * width".

The text is parsed by Python's own parser and the tree is translated node by node; nothing is run.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import NoReturn

from slipway.export.errors import ExportError, ExportErrorKind
from slipway.program.contract import Symbol
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

__all__ = ["SymbolRange", "declared_symbols", "parse_relation", "parse_shape", "range_condition"]

SymbolRange = tuple[int, int | None] | int | set[int] | frozenset[int]
"""What a symbol may be: (minimum, maximum), a minimum alone, or a set of sizes."""

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}

_GRAMMAR = "use names, integers, +, -, *, //, %, min(), max(), comparisons, and, or, not"


def _invalid(text: str, reason: str) -> NoReturn:
    raise ExportError(ExportErrorKind.INVALID_SPEC, f'"{text}": {reason}', _GRAMMAR)


def declared_symbols(ranges: Mapping[str, SymbolRange]) -> dict[str, Symbol]:
    """Returns the symbols for their ranges. Raises: ExportError."""
    symbols = {}
    for name, given in ranges.items():
        low: int
        high: int | None
        match given:
            case set() | frozenset() if given and all(isinstance(size, int) for size in given):
                low, high = min(given), max(given)
            case int():
                low, high = given, None
            case (int(), int() | None):
                low, high = given
            case _:
                raise ExportError(
                    ExportErrorKind.INVALID_SPEC,
                    f"the symbol '{name}' is declared as {given!r}",
                    "give (minimum, maximum), a minimum, or a set of sizes",
                )
        if not name.isidentifier() or low < 0 or (high is not None and high < low):
            raise ExportError(
                ExportErrorKind.INVALID_SPEC,
                f"the symbol '{name}' is declared as {given!r}, which allows no size",
                "give a name of letters, digits and _, and a minimum from 0 up to the maximum",
            )
        symbols[name] = Symbol(name, low, high)
    return symbols


def range_condition(symbol: Expression, given: SymbolRange) -> Condition | None:
    """Returns what a set of sizes says beyond its lowest and highest; None for a range."""
    if not isinstance(given, set | frozenset) or len(given) == max(given) - min(given) + 1:
        return None
    return AnyOf(tuple(Comparison("==", symbol, Constant(size)) for size in sorted(given)))


def parse_shape(text: str, symbols: dict[str, Symbol]) -> list[Expression | None]:
    """Returns an expression for each dimension of a shape; None for `_`, the example's own size.

    Args:
      text: dimensions separated by commas; nothing for a tensor of none.
      symbols: by name; a name that is not there is added, for any size.

    Raises:
      ExportError: the text is no shape.
    """
    if not text.strip():
        return []
    names = {node.id for node in ast.walk(_parsed(text)) if isinstance(node, ast.Name)}
    for name in sorted(names - {"_", "min", "max"}):
        symbols.setdefault(name, Symbol(name, 0, None))
    meaning = {name: SymbolReference(place, name) for place, name in enumerate(symbols)}
    body = _parsed(text)
    parts = body.elts if isinstance(body, ast.Tuple) else [body]
    return [
        None if isinstance(part, ast.Name) and part.id == "_" else _expression(part, meaning, text)
        for part in parts
    ]


def parse_relation(text: str, meaning: Mapping[str, Expression]) -> Condition:
    """Returns the condition that a text states about symbols.

    Args:
      text: the relation.
      meaning: what each name stands for.

    Raises:
      ExportError: the text is no relation, or names a symbol that there is not.
    """
    return _condition(_parsed(text), meaning, text)


def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        _invalid(text, f"is not well formed: {error}")


def _condition(node: ast.expr, meaning: Mapping[str, Expression], text: str) -> Condition:
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            return All(tuple(_condition(value, meaning, text) for value in values))
        case ast.BoolOp(op=ast.Or(), values=values):
            return AnyOf(tuple(_condition(value, meaning, text) for value in values))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return Negation(_condition(operand, meaning, text))
        case ast.Compare(left=left, ops=operators, comparators=others):
            sides = [_expression(side, meaning, text) for side in (left, *others)]
            comparisons = tuple(
                Comparison(_comparison(operator, text), sides[place], sides[place + 1])
                for place, operator in enumerate(operators)
            )
            return comparisons[0] if len(comparisons) == 1 else All(comparisons)
        case _:
            _invalid(text, "is not a comparison")


def _comparison(operator: ast.cmpop, text: str) -> str:
    if type(operator) not in _COMPARISONS:
        _invalid(text, "compares with something other than ==, !=, <, <=, >, >=")
    return _COMPARISONS[type(operator)]


def _expression(node: ast.expr, meaning: Mapping[str, Expression], text: str) -> Expression:
    def convert(item: ast.expr) -> Expression:
        return _expression(item, meaning, text)

    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return Constant(value)
        case ast.Name(id=name) if name in meaning:
            return meaning[name]
        case ast.Name(id=name):
            _invalid(text, f"there is no symbol '{name}'; there are {', '.join(meaning) or 'none'}")
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return Constant(-value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return Multiply((Constant(-1), convert(operand)))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return Add((convert(left), convert(right)))
        case ast.BinOp(left=left, op=ast.Sub(), right=ast.Constant(value=int(value))):
            return Add((convert(left), Constant(-value)))
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return Add((convert(left), Multiply((Constant(-1), convert(right)))))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return Multiply((convert(left), convert(right)))
        case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
            return FloorDivide(convert(left), convert(right))
        case ast.BinOp(left=left, op=ast.Mod(), right=right):
            return Modulo(convert(left), convert(right))
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=args, keywords=[]) if (
            len(args) >= 2
        ):
            operands = tuple(convert(item) for item in args)
            return Minimum(operands) if name == "min" else Maximum(operands)
        case _:
            _invalid(text, f"has a part that is no size: {ast.unparse(node)}")
