"""Traces a model, and traces it again where tracing excluded a size that may be legal.

Torch's symbolic shapes exclude single sizes, mostly 1, for the bookkeeping of operators that the
graph does not look into: `matmul` asks whether a dimension is 1 to choose strides, and from then on
the shape environment says that it is not. Whether the graph is valid for the excluded size is
decided by tracing at that very size: it is if that gives the same graph.
"""

from __future__ import annotations

import contextlib
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
from slipway.export.exclusions import Point, excluded_points
from slipway.export.graph_equality import View, same_graph
from slipway.export.narrowing import Narrowing, narrowing_error
from slipway.export.resizing import binding_of, resized_leaves
from slipway.export.tightening import raise_minimums
from slipway.program.contract import Contract, Relation
from slipway.program.errors import ContractViolation
from slipway.program.expressions import (
    Comparison,
    Expression,
    holds,
    symbols_of,
)
from slipway.program.nearest_call import nearest_call

__all__ = ["Traced", "Tracer", "settle", "trace_and_settle"]

_FAR = 1 << 40


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
      alone: whether no other method shares the weights, which it could change.
      settled: by the values of symbols that were fixed, what was traced there and its contract;
        None where that is impossible.
    """

    module: torch.nn.Module
    output_names: Sequence[str] | None
    method: str
    strict: bool
    alone: bool
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
    accept_narrowing: str | None,
) -> tuple[Traced, Contract]:
    """Returns the graph for an example, and the contract that `settle` gives it.

    Torch takes what holds for a size of 1 in the example, that one stride is another, for what the
    graph needs. Where the contract is too narrow, a larger example shows what it really needs; what
    is accepted is only that, unless it excludes the example itself. Where the model treats the
    example's sizes apart, the graph for others may do for these as well.

    Raises:
      ExportError: as `Tracer.trace` and `settle` do.
    """
    traced = tracer.trace(args, kwargs, declared)
    try:
        return traced, settle(tracer, traced)
    except ExportError as error:
        refusal = error
    leaves = _resized_example(traced, _larger_sizes(traced))
    if leaves is not None:
        try:
            return _trace_instead(tracer, traced, leaves, accept_narrowing)
        except ContractViolation:
            pass  # only the example's own graph has its sizes
        except ExportError as error:
            if error.kind is ExportErrorKind.CONSTRAINT_VIOLATION:
                refusal = error
    leaves = _resized_example(traced, _sizes_without_equality(traced))
    if leaves is not None:
        # An equality that the example fulfils by chance, and what other sizes need is no news.
        with contextlib.suppress(ContractViolation, ExportError):
            return _trace_instead(tracer, traced, leaves, None)
    if accept_narrowing is None:
        raise refusal
    return traced, settle(tracer, traced, accept_narrowing)


def _trace_instead(
    tracer: Tracer, traced: Traced, leaves: Sequence[object], accept_narrowing: str | None
) -> tuple[Traced, Contract]:
    """Returns the graph for another example, and its contract, which has the example's sizes too.

    Raises:
      ContractViolation: it has not.
      ExportError: as `Tracer.trace` and `settle` do.
    """
    call: Any = traced.derivation.contract.input_tree.unflatten(iter(leaves))
    args, kwargs = call
    other_tracer = replace(tracer, settled={})
    again = other_tracer.trace(args, kwargs, traced.declared)
    contract = settle(other_tracer, again, accept_narrowing)
    binding_of(contract, traced.example)
    return replace(again, example=traced.example), contract


def _resized_example(traced: Traced, binding: Sequence[int]) -> list[object] | None:
    """Returns the example with other sizes; None if they are the same ones, or not declared."""
    contract = traced.derivation.contract
    stated = traced.declared.conditions(contract.symbols)
    same = tuple(binding) == binding_of(contract, traced.example)
    if same or not all(holds(item, binding) for item in stated):
        return None
    return resized_leaves(contract, binding, traced.example)


def _larger_sizes(traced: Traced) -> list[int]:
    """Returns the example's sizes, with more than 1 for each declared symbol where that may be."""
    contract = traced.derivation.contract
    inferred = {symbol.name for symbol in traced.derivation.table.inferred}
    usual = binding_of(contract, traced.example)
    others = (size for size in itertools.count(2) if size not in usual)
    return [
        value
        if value > 1 or symbol.name in inferred or symbol.maximum == value
        else min(next(others), symbol.maximum or _FAR)
        for symbol, value in zip(contract.symbols, usual, strict=True)
    ]


def _sizes_without_equality(traced: Traced) -> list[int]:
    """Returns such sizes, and others where the declared range is narrowed by an equality.

    A model of images treats the size that it was trained with apart, and it is the example's.
    """
    symbols = traced.derivation.contract.symbols
    sizes = _larger_sizes(traced)
    equalities = [
        item.condition
        for item in traced.derivation.narrowings.values()
        if isinstance(item.condition, Comparison) and item.condition.operator == "=="
    ]
    for index in sorted({item.index for part in equalities for item in symbols_of(part)}):
        low, high = symbols[index].minimum, symbols[index].maximum or _FAR
        near = (sizes[index] + step for step in (1, 2, 3, -1, -2, -3))
        sizes[index] = next(
            (size for size in near if low <= size <= high and size not in sizes), sizes[index]
        )
    return sizes


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
    needless, differing = _needless_relations(tracer, traced)
    if accept_narrowing is None:
        _require_as_wide_as_declared(traced, needless, differing)
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


def _require_as_wide_as_declared(
    traced: Traced, needless: Container[Relation], differing: Mapping[Relation, Point]
) -> None:
    """Raises ExportError if relations make the contract narrower than was declared."""
    narrowings = [
        _counted_against(narrowing, differing.get(relation, ()))
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


def _counted_against(narrowing: Narrowing, point: Point) -> Narrowing:
    """Returns a narrowing whose counterexample has these sizes."""
    values = dict(enumerate(narrowing.counterexample or ())) | dict(point)
    return replace(narrowing, counterexample=tuple(values.values()))


def _needless_relations(
    tracer: Tracer, traced: Traced
) -> tuple[set[Relation], dict[Relation, Point]]:
    """Returns the relations that only exclude sizes for which the graph is valid all the same.

    With them it returns, for others of which each excluded size was tried, one where it is not.
    """
    contract = traced.derivation.contract
    stated = traced.declared.conditions(contract.symbols)
    # For each of these relations, what holds at the sizes that it excludes.
    found: dict[Relation, set[str]] = {}
    differing: dict[Relation, Point] = {}
    answers: dict[Point, set[str] | None] = {}
    for relation in contract.relations:
        if relation.condition in stated or relation in traced.derivation.hinted:
            continue
        excluded = excluded_points(relation.condition, contract.symbols)
        demands = []
        for point in excluded:
            if point not in answers:
                answers[point] = _relations_at(tracer, traced, point)
            demands.append(answers[point])
            if demands[-1] is None:
                differing[relation] = point
                break  # the others would not help
        if demands and None not in demands:
            found[relation] = {text for demand in demands for text in demand or ()}
    # What holds there must be kept, or two sizes could each be let in because the other is out.
    while True:
        kept = {str(relation) for relation in contract.relations if relation not in found}
        unfounded = [relation for relation, demand in found.items() if not demand <= kept]
        if not unfounded:
            return set(found), differing
        for relation in unfounded:
            del found[relation]


def _relations_at(tracer: Tracer, traced: Traced, point: Point) -> set[str] | None:
    """Returns the relations that hold if symbols have some values; None if the graph is another."""
    contract = traced.derivation.contract
    values = dict(point)
    binding = _nearest_binding(traced, values)
    leaves = None if binding is None else resized_leaves(contract, binding, traced.example)
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
            # What makes it narrower there does so elsewhere too, or else counts against this size.
            tracer.settled[key] = trace_and_settle(tracer, args, kwargs, declared, "")
        except ExportError:
            tracer.settled[key] = None  # it cannot be traced there, so it stays excluded
    found = tracer.settled[key]
    if found is None:
        return None
    here = View(
        traced.derivation.table.meaning,
        {sympy.Symbol(name, integer=True, nonnegative=True): size for name, size in names.items()},
        _weights(traced.capture) if tracer.alone else {},
    )
    there = View(
        found[0].derivation.table.meaning,
        weights=_weights(found[0].capture) if tracer.alone else {},
    )
    graphs = traced.capture.exported.graph, found[0].capture.exported.graph
    try:
        if not same_graph(here, there, *graphs):
            return None
    except ZeroDivisionError:
        return None  # of a size in the graph, which is for other values
    # What was stated holds wherever the contract does.
    stated = found[0].declared.conditions(found[1].symbols)
    return {str(item) for item in found[1].relations if item.condition not in stated}


def _nearest_binding(traced: Traced, values: Mapping[int, int]) -> tuple[int, ...] | None:
    """Returns sizes near the example's, with some given, for which all holds that was stated.

    Returns None if none are found.
    """
    contract = traced.derivation.contract
    stated = traced.declared.conditions(contract.symbols)
    symbols = tuple(
        replace(symbol, minimum=values[index], maximum=values[index]) if index in values else symbol
        for index, symbol in enumerate(contract.symbols)
    )
    usual = binding_of(contract, traced.example)
    wished = [values.get(index, value) for index, value in enumerate(usual)]
    if all(holds(item, wished) for item in stated):
        return tuple(wished)
    relations = tuple(Relation(condition) for condition in stated)
    narrowed = replace(contract, symbols=symbols, relations=relations)
    inputs = {
        name: (spec.dtype, tuple(size.evaluate(wished) for size in spec.shape))
        for name, spec in contract.tensor_inputs.items()
    }
    shapes = nearest_call(narrowed, inputs)
    if shapes is None:
        return None
    return narrowed.check({name: (inputs[name][0], shape) for name, shape in shapes.items()})


def _weights(capture: Capture) -> dict[str, torch.Tensor]:
    """Returns the weights by the names of their placeholders."""
    exported = capture.exported
    values = {**exported.constants, **exported.state_dict}
    return {
        spec.arg.name: values[spec.target].detach()
        for spec in exported.graph_signature.input_specs
        if isinstance(values.get(spec.target), torch.Tensor)
    }


def _is_fixed(size: Expression, values: Mapping[int, int]) -> bool:
    """Returns whether a size is no constant, and has no symbol but these."""
    involved = {item.index for item in symbols_of(size)}
    return bool(involved) and involved <= values.keys()
