"""Traces a model, and traces it again where tracing excluded a size that may be legal.

Torch's symbolic shapes exclude single sizes, mostly 1, for the bookkeeping of operators that the
graph does not look into: `matmul` asks whether a dimension is 1 to choose strides, and from then on
the shape environment says that it is not. Whether the graph is valid for the excluded size is
decided by tracing at that very size: it is if that gives the same graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch

from slipway.export.capture import Capture, capture
from slipway.export.derivation import Derivation, derive
from slipway.export.dimensions import Declarations, Static, bind_example
from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.graph_equality import View, same_graph
from slipway.export.narrowing import narrowing_error
from slipway.export.resizing import binding_of, resized_leaves
from slipway.export.tightening import raise_minimums
from slipway.program.contract import Contract, Relation, Symbol
from slipway.program.errors import ContractViolation
from slipway.program.expressions import (
    Comparison,
    Constant,
    Expression,
    SymbolReference,
    holds,
    linear_form,
    symbols_of,
)

__all__ = ["Traced", "Tracer", "settle", "trace_and_settle"]

_FAR = 1 << 40
_FEW = 2
"""So many sizes that a relation excludes are tried, each by tracing the model again."""

_FEW_TOGETHER = 12
"""So many combinations of sizes likewise: few heights and widths make 256 or 576 patches."""

_MOST_POINTS = 1 << 14
"""Up to so many combinations of sizes are looked through for those that a relation excludes."""

Point = tuple[tuple[int, int], ...]
"""The indices of some symbols, each with a value."""


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
    """Traces one model, on different examples.

    Attributes:
      settled: by the values of symbols that were fixed, what was traced there and its contract;
        None where that is impossible.
    """

    module: torch.nn.Module
    output_names: Sequence[str] | None
    method: str
    strict: bool
    settled: dict[frozenset[tuple[str, int]], tuple[Traced, Contract] | None] = field(
        default_factory=dict
    )

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


def trace_and_settle(
    tracer: Tracer,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    declared: Declarations,
    accept_narrowing: str | None = None,
) -> tuple[Traced, Contract]:
    """Returns the graph for an example, and the contract that `settle` gives it.

    Torch takes what holds for a size of 1 in the example, that one stride is another, for what the
    graph needs. Where the contract is too narrow, a larger example shows what it really needs; what
    is accepted is only that, unless it excludes the example itself.

    Raises:
      ExportError: as `Tracer.trace` and `settle` do.
    """
    traced = tracer.trace(args, kwargs, declared)
    try:
        return traced, settle(tracer, traced)
    except ExportError as error:
        refusal = error
    leaves = _larger_example(traced)
    if leaves is not None:
        call: Any = traced.derivation.contract.input_tree.unflatten(iter(leaves))
        other_tracer = replace(tracer, settled={})
        try:
            args, kwargs = call
            again = other_tracer.trace(args, kwargs, declared)
            contract = settle(other_tracer, again, accept_narrowing)
            binding_of(contract, traced.example)
            return replace(again, example=traced.example), contract
        except ContractViolation:
            pass  # only the example's own graph has its sizes
        except ExportError as error:
            if error.kind is ExportErrorKind.CONSTRAINT_VIOLATION:
                refusal = error
    if accept_narrowing is None:
        raise refusal
    return traced, settle(tracer, traced, accept_narrowing)


def _larger_example(traced: Traced) -> list[object] | None:
    """Returns the example with more than 1 for each declared symbol; None if it has that."""
    contract = traced.derivation.contract
    inferred = {symbol.name for symbol in traced.derivation.table.inferred}
    usual = binding_of(contract, traced.example)
    others = (size for size in itertools.count(2) if size not in usual)
    binding = [
        value
        if value > 1 or symbol.name in inferred or symbol.maximum == value
        else min(next(others), symbol.maximum or _FAR)
        for symbol, value in zip(contract.symbols, usual, strict=True)
    ]
    stated = traced.declared.conditions(contract.symbols)
    if binding == list(usual) or not all(holds(item, binding) for item in stated):
        return None
    return resized_leaves(contract, binding, traced.example)


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
    needless = _needless_relations(tracer, traced)
    if accept_narrowing is None:
        _require_as_wide_as_declared(traced, needless)
    kept = []
    notes = []
    for relation in contract.relations:
        if relation in needless:
            continue
        narrowing = traced.derivation.narrowings.get(relation)
        if narrowing is not None and narrowing.counterexample is None:
            notes.append(f"kept, though no declared size is known to break it: {relation}")
        elif narrowing is not None:
            notes.append(f"narrower than declared: {relation}; accepted: {accept_narrowing}")
        kept.append(relation)
    contract = replace(contract, relations=tuple(kept), notes=tuple(notes))
    inferred = {symbol.name for symbol in traced.derivation.table.inferred}
    return raise_minimums(contract, inferred)


def _require_as_wide_as_declared(traced: Traced, needless: Container[Relation]) -> None:
    """Raises ExportError if relations make the contract narrower than was declared."""
    narrowings = [
        narrowing
        for relation, narrowing in traced.derivation.narrowings.items()
        if relation not in needless and narrowing.counterexample is not None
    ]
    # A dimension that is fixed by one line tends to be excluded from sizes by others.
    equalities = [
        item
        for item in narrowings
        if isinstance(item.condition, Comparison) and item.condition.operator == "=="
    ]
    if narrowings:
        raise narrowing_error(equalities or narrowings, traced.derivation.contract)


def _needless_relations(tracer: Tracer, traced: Traced) -> set[Relation]:
    """Returns the relations that only exclude sizes for which the graph is valid all the same."""
    contract = traced.derivation.contract
    stated = traced.declared.conditions(contract.symbols)
    # For each of these relations, what holds at the sizes that it excludes.
    found: dict[Relation, set[str]] = {}
    answers: dict[Point, set[str] | None] = {}
    for relation in contract.relations:
        if relation.condition in stated or relation in traced.derivation.hinted:
            continue
        excluded = _excluded_points(relation, contract.symbols)
        demands = []
        for point in excluded:
            if point not in answers:
                answers[point] = _relations_at(tracer, traced, point)
            demands.append(answers[point])
            if demands[-1] is None:
                break  # the others would not help
        if demands and None not in demands:
            found[relation] = {text for demand in demands for text in demand or ()}
    # What holds there must be kept, or two sizes could each be let in because the other is out.
    while True:
        kept = {str(relation) for relation in contract.relations if relation not in found}
        unfounded = [relation for relation, demand in found.items() if not demand <= kept]
        if not unfounded:
            return set(found)
        for relation in unfounded:
            del found[relation]


def _excluded_points(relation: Relation, symbols: Sequence[Symbol]) -> list[Point]:
    """Returns the values of a relation's symbols that it excludes, if these are only a few."""
    condition = relation.condition
    if not isinstance(condition, Comparison) or condition.operator == "==":
        return []
    form = linear_form(condition.left)
    if form is not None and isinstance(condition.right, Constant):
        return _excluded_values(relation, symbols, form, condition.right.value)
    involved = sorted({item.index for item in symbols_of(condition)})
    ranges = []
    count = 1
    for index in involved:
        maximum = symbols[index].maximum
        if maximum is None:
            return []
        ranges.append(range(symbols[index].minimum, maximum + 1))
        count *= len(ranges[-1])
    if count > _MOST_POINTS:
        return []
    values = [0] * len(symbols)
    excluded: list[Point] = []
    for point in itertools.product(*ranges):
        for index, value in zip(involved, point, strict=True):
            values[index] = value
        if not holds(condition, values):
            excluded.append(tuple(zip(involved, point, strict=True)))
            if len(excluded) > _FEW_TOGETHER:
                return []
    return excluded


def _excluded_values(
    relation: Relation,
    symbols: Sequence[Symbol],
    form: tuple[int, SymbolReference, int],
    bound: int,
) -> list[Point]:
    """Does the same for a relation that compares a multiple of a symbol with a number."""
    factor, symbol, offset = form
    low, high = symbols[symbol.index].minimum, symbols[symbol.index].maximum
    near = range((bound - offset) // factor - 1, (bound - offset) // factor + 3)
    ends = [*range(low, low + _FEW + 1)]
    # Without an upper bound, far off stands for the sizes without end that may be excluded.
    last = high if high is not None else max(low, *near) + _FAR
    ends += range(last - _FEW, last + 1)
    inside = {item for item in (*near, *ends) if low <= item and (high is None or item <= high)}
    values = [0] * len(symbols)
    excluded: list[Point] = []
    for item in sorted(inside):
        values[symbol.index] = item
        if not holds(relation.condition, values):
            excluded.append(((symbol.index, item),))
    # Those that were tried decide: a comparison with a bound fails on one side of it, or at it.
    return excluded if len(excluded) <= _FEW else []


def _relations_at(tracer: Tracer, traced: Traced, point: Point) -> set[str] | None:
    """Returns the relations that hold if symbols have some values; None if the graph is another."""
    contract = traced.derivation.contract
    values = dict(point)
    binding = list(binding_of(contract, traced.example))
    for symbol, value in point:
        binding[symbol] = value
    leaves = resized_leaves(contract, binding, traced.example)
    if leaves is None:
        return None
    dimensions = {
        name: [
            Static() if _is_fixed(size, values) else declaration
            for size, declaration in zip(
                contract.tensor_inputs[name].shape, declarations, strict=True
            )
        ]
        for name, declarations in traced.declared.dimensions.items()
    }
    names = {contract.symbols[symbol].name: value for symbol, value in point}
    fixed = {**traced.declared.fixed, **names}
    declared = replace(traced.declared, dimensions=dimensions, fixed=fixed)
    key = frozenset(fixed.items())
    if key not in tracer.settled:
        call: Any = contract.input_tree.unflatten(iter(leaves))
        try:
            args, kwargs = call
            again = tracer.trace(args, kwargs, declared)
            # What makes it narrower there does so elsewhere too, or else counts against this size.
            tracer.settled[key] = again, settle(tracer, again, accept_narrowing="")
        except ExportError:
            tracer.settled[key] = None  # it cannot be traced there, so it stays excluded
    found = tracer.settled[key]
    if found is None:
        return None
    here = View(
        traced.derivation.table.meaning,
        {sympy.Symbol(name, integer=True, nonnegative=True): size for name, size in names.items()},
    )
    there = View(found[0].derivation.table.meaning)
    graphs = traced.capture.exported.graph, found[0].capture.exported.graph
    try:
        if not same_graph(here, there, *graphs):
            return None
    except ZeroDivisionError:
        return None  # of a size in the graph, which is for other values
    return set(map(str, found[1].relations))


def _is_fixed(size: Expression, values: Mapping[int, int]) -> bool:
    """Returns whether a size is no constant, and has no symbol but these."""
    involved = {item.index for item in symbols_of(size)}
    return bool(involved) and involved <= values.keys()
