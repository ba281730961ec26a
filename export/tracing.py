"""Traces a model, and traces it again where tracing excluded a size that may be legal.

Torch's symbolic shapes exclude single sizes, mostly 1, for the bookkeeping of operators that the
graph does not look into: `matmul` asks whether a dimension is 1 to choose strides, and from then on
the shape environment says that it is not. Whether the graph is valid for the excluded size is
decided by tracing at that very size: it is if that gives the same graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch

from slipway.export.capture import Capture, capture
from slipway.export.derivation import Derivation, derive
from slipway.export.dimensions import Declarations, Static, bind_example
from slipway.export.errors import ExportError
from slipway.export.resizing import binding_of, resized_leaves
from slipway.export.symbol_table import expression_of
from slipway.program.contract import Contract, Relation
from slipway.program.expressions import (
    Comparison,
    Constant,
    linear_form,
    symbols_of,
)

__all__ = ["Traced", "Tracer", "settle"]


@dataclass(frozen=True, slots=True)
class Traced:
    """A model traced on one example.

    Attributes:
      model: what was traced.
      capture: the graph.
      derivation: its contract.
      declared: what is declared of the call.
      example: the leaves of the example, in the order of the contract's inputs.
    """

    model: torch.nn.Module
    capture: Capture
    derivation: Derivation
    declared: Declarations
    example: Sequence[object]


@dataclass(frozen=True, slots=True)
class Tracer:
    """Traces one model, on different examples."""

    module: torch.nn.Module
    output_names: Sequence[str] | None
    method: str
    strict: bool

    def trace(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        declared: Declarations,
    ) -> Traced:
        """Returns the graph and the contract for an example. Raises: ExportError."""
        call = bind_example(self.module.forward, args, kwargs)
        captured = capture(self.module, call, declared.dimensions, strict=self.strict)
        derivation = derive(captured, call, declared, self.output_names, self.method)
        return Traced(
            self.module, captured, derivation, declared, [leaf for _, leaf in call.leaves]
        )


def settle(tracer: Tracer, traced: Traced, accept_narrowing: str | None = None) -> Contract:
    """Returns the contract without the exclusions that the graph does not need.

    Args:
      tracer: of the model.
      traced: the model.
      accept_narrowing: why the contract may be narrower than was declared; it is noted there.

    Raises:
      ExportError: the contract is narrower than was declared, and nobody said that it may be.
    """
    contract = traced.derivation.contract
    kept = []
    notes = []
    for relation in contract.relations:
        excluded = _excluded_value(relation)
        if excluded is not None and _is_needless(tracer, traced, *excluded):
            continue
        if relation in traced.derivation.narrowings:
            if accept_narrowing is None:
                raise traced.derivation.narrowings[relation]
            notes.append(f"narrower than declared: {relation}; accepted: {accept_narrowing}")
        kept.append(relation)
    return replace(contract, relations=tuple(kept), notes=tuple(notes))


def _excluded_value(relation: Relation) -> tuple[int, int] | None:
    """Returns the symbol and the value if a relation only excludes one value of one symbol."""
    match relation.condition:
        case Comparison("!=", expression, Constant(value)):
            form = linear_form(expression)
            if form is not None and (value - form[2]) % form[0] == 0:
                return form[1].index, (value - form[2]) // form[0]
    return None


def _is_needless(tracer: Tracer, traced: Traced, symbol: int, value: int) -> bool:
    """Returns whether tracing with a symbol at a value gives the same graph, and asks no more."""
    contract = traced.derivation.contract
    named = contract.symbols[symbol]
    if value < named.minimum or (named.maximum is not None and value > named.maximum):
        return True
    binding = list(binding_of(contract, traced.example))
    binding[symbol] = value
    leaves = resized_leaves(contract, binding, traced.example)
    if leaves is None:
        return False
    dimensions = {
        name: [
            Static() if {item.index for item in symbols_of(size)} == {symbol} else declaration
            for size, declaration in zip(
                contract.tensor_inputs[name].shape, declarations, strict=True
            )
        ]
        for name, declarations in traced.declared.dimensions.items()
    }
    fixed = {**traced.declared.fixed, named.name: value}
    declared = replace(traced.declared, dimensions=dimensions, fixed=fixed)
    call: Any = contract.input_tree.unflatten(iter(leaves))
    args, kwargs = call
    try:
        again = tracer.trace(args, kwargs, declared)
        relations = settle(tracer, again).relations
    except ExportError:
        return False  # it cannot be traced there, so it stays excluded
    known = {str(relation) for relation in contract.relations}
    return {str(relation) for relation in relations} <= known and _same_graph(
        traced, again, {sympy.Symbol(named.name, integer=True, nonnegative=True): value}
    )


def _same_graph(first: Traced, second: Traced, values: Mapping[sympy.Symbol, int]) -> bool:
    """Returns whether two graphs are the same where symbols of the first have certain values."""
    ours, theirs = list(_tensor_nodes(first)), list(_tensor_nodes(second))
    if len(ours) != len(theirs):
        return False
    same = dict(zip(ours, theirs, strict=True))

    def equal(left: Any, right: Any) -> bool:
        if isinstance(left, list | tuple):
            return (
                isinstance(right, list | tuple)
                and len(left) == len(right)
                and all(map(equal, left, right))
            )
        if isinstance(left, torch.fx.Node) and left in same:
            return same[left] is right
        integer = _integer(left, first)
        if integer is not None:
            return bool(integer.xreplace(values) == _integer(right, second))
        return type(left) is type(right) and bool(left == right)

    def shape(node: torch.fx.Node, traced: Traced) -> list[Any]:
        value = node.meta.get("val")
        return list(value.shape) if isinstance(value, torch.Tensor) else []

    return all(
        left.op == right.op
        and (left.op == "placeholder" or left.target == right.target)
        and equal(left.args, right.args)
        and left.kwargs.keys() == right.kwargs.keys()
        and all(equal(left.kwargs[name], right.kwargs[name]) for name in left.kwargs)
        and equal(shape(left, first), shape(right, second))
        for left, right in same.items()
    )


def _tensor_nodes(traced: Traced) -> Iterator[torch.fx.Node]:
    """Yields all nodes but those that compute sizes, which are compared by what they give."""
    for node in traced.capture.exported.graph.nodes:
        if not isinstance(node.meta.get("val"), int | torch.SymInt | torch.SymBool):
            yield node


def _integer(value: Any, traced: Traced) -> sympy.Basic | None:
    """Returns a size over the contract's symbols, whether it is a number, symbolic, or a node."""
    if isinstance(value, torch.fx.Node):
        value = value.meta.get("val")
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        return None
    return expression_of(value).xreplace(traced.derivation.table.meaning)
