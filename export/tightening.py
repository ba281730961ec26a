"""Leaves out of a contract the sizes that nobody declared and that the model cannot take.

The range of a dimension that was left to tracing (`Dim.AUTO`) begins at 0 unless a guard says
otherwise. Whether 0 and 1 belong to it, the sizes that models and operators treat apart, is found
out by trying: an operator may refuse an empty dimension, or drop one of size 1, without a guard.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from functools import partial

import torch

from slipway.export.errors import ExportError
from slipway.export.gate import compare
from slipway.export.resizing import binding_of, resized_leaves
from slipway.program.contract import Contract, Relation
from slipway.program.expressions import Comparison, Constant, SymbolReference
from slipway.program.program import Program

__all__ = ["raise_minimums", "tighten"]

_TREATED_APART = (0, 1)


def tighten(
    model: torch.nn.Module,
    program: Program,
    name: str,
    example: Sequence[object],
    inferred: Container[str],
) -> Contract:
    """Returns a method's contract without the sizes 0 and 1 where model and program disagree.

    Args:
      model: what the program was made from; its buffers are left as they were.
      program: its state is left as it was.
      name: the method's.
      example: the leaves of the example call, in the order of `contract.inputs`.
      inferred: the names of the symbols that nobody declared; others keep their ranges.
    """
    contract = program.methods[name].contract
    usual = binding_of(contract, example)
    for index, symbol in enumerate(contract.symbols):
        for value in _TREATED_APART if symbol.name in inferred else ():
            binding = (*usual[:index], value, *usual[index + 1 :])
            if contract.is_legal(binding) and not _agree(model, program, name, example, binding):
                contract = _without(contract, index, value)
    lowest = tuple(symbol.minimum for symbol in contract.symbols)
    if contract.is_legal(lowest) and not _agree(model, program, name, example, lowest):
        for index, symbol in enumerate(contract.symbols):
            if symbol.name in inferred and symbol.minimum == 0:
                contract = _without(contract, index, 0)
    return contract


def raise_minimums(contract: Contract, inferred: Container[str]) -> Contract:
    """Returns a contract in which ranges, not relations, exclude the least sizes of symbols.

    Args:
      contract: of a method.
      inferred: the names of the symbols that nobody declared; others keep their ranges.
    """
    for relation in contract.relations:
        match relation.condition:
            case Comparison("!=", SymbolReference(index, name), Constant(value)) if (
                name in inferred and value == contract.symbols[index].minimum
            ):
                others = tuple(item for item in contract.relations if item is not relation)
                contract = _without(replace(contract, relations=others), index, value)
                return raise_minimums(contract, inferred)
    return contract


def _agree(
    model: torch.nn.Module,
    program: Program,
    name: str,
    example: Sequence[object],
    binding: Sequence[int],
) -> bool:
    contract = program.methods[name].contract
    leaves = resized_leaves(contract, binding, example)
    if leaves is None:
        return True
    try:
        spare = partial(resized_leaves, contract, binding, example, whole=True)
        compare(model, program, name, leaves, "", spare)
    except ExportError:
        return False
    return True


def _without(contract: Contract, index: int, value: int) -> Contract:
    symbol = contract.symbols[index]
    if symbol.minimum == value:
        symbols = list(contract.symbols)
        symbols[index] = replace(symbol, minimum=value + 1)
        return replace(contract, symbols=tuple(symbols))
    excluded = Comparison("!=", SymbolReference(index, symbol.name), Constant(value))
    return replace(contract, relations=(*contract.relations, Relation(excluded)))
