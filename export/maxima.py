"""The larger of two sizes, where it is the same one for all sizes that are declared.

Padding by which a convolution gives `ceil(n / 2)` is `max(2*((n + 1) // 2) + 1 - n, 0)` in many
models. Torch's own bounds take the two n for two numbers and keep the maximum, and so sizes become
several times as long with each such layer: after five, a trace takes minutes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import sympy
import torch
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import FloorDiv
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

__all__ = ["decide_maxima"]


@contextlib.contextmanager
def decide_maxima() -> Iterator[None]:
    """Has tracing take the larger of two sizes in place of their maximum where it is known.

    `abs(n - m)` is the larger of `n - m` and `m - n`.
    """
    maximum = SymNode.sym_max

    def decide(one: SymNode, other: SymNode) -> SymNode:
        if one.is_int() and other.is_int():
            bounds = _bounds(sympy.Add(one._expr, sympy.Mul(-1, other._expr)), one.shape_env)
            if bounds.lower >= 0:
                return one
            if bounds.upper <= 0:
                return other
        return maximum(one, other)

    def absolute(size: torch.SymInt) -> Any:
        # A contract and a graph have no other way to say it.
        return torch.sym_max(size, -size)  # type: ignore[no-untyped-call]

    with (
        mock.patch.object(SymNode, "sym_max", decide),
        mock.patch.object(torch.SymInt, "__abs__", absolute),
    ):
        yield


def _bounds(size: sympy.Expr, shape_env: ShapeEnv | None) -> ValueRanges[sympy.Expr]:
    """Returns the range of a sum in which multiples of quotients nearly cancel other terms."""
    known = {} if shape_env is None else shape_env.var_to_range
    ranges = {symbol: known[symbol] for symbol in size.free_symbols if symbol in known}
    if len(ranges) < len(size.free_symbols):
        return ValueRanges.unknown_int()
    total = sympy.Integer(0)
    for term in sympy.Add.make_args(sympy.expand(size)):
        factor, quotient = term.as_coeff_Mul()
        match quotient:
            case FloorDiv(args=(dividend, sympy.Integer(is_positive=True) as divisor)):
                # 2*(n // 4) is n // 2 less a remainder of 0 or 1.
                step = math.gcd(int(factor), int(divisor))
                remainder = sympy.Dummy(integer=True)
                ranges[remainder] = ValueRanges(0, step - 1)
                whole = _quotient(dividend, divisor // step)
                total += factor / step * (whole - remainder)
            case _:
                total += term
    return bound_sympy(sympy.expand(total), ranges)


def _quotient(dividend: sympy.Expr, divisor: int) -> sympy.Expr:
    """Returns a quotient whose dividend ends with less than the divisor: (n + 7) // 4 has a 3."""
    constant, rest = dividend.as_coeff_Add()
    return FloorDiv(rest + constant % divisor, divisor) + constant // divisor
