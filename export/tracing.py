"""Traces a model, and traces it again where tracing excluded a size that may be legal.

Torch's symbolic shapes exclude single sizes, mostly 1, for the bookkeeping of operators that the
graph does not look into: `matmul` asks whether a dimension is 1 to choose strides, and from then on
the shape environment says that it is not. Whether the graph is valid for the excluded size is
decided by tracing at that very size: it is if that gives the same graph.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch

from slipway.export.capture import Capture, capture
from slipway.export.derivation import Derivation, derive
from slipway.export.dimensions import Declarations, Static, bind_example
from slipway.export.errors import ExportError
from slipway.export.narrowing import narrowing_error
from slipway.export.resizing import binding_of, resized_leaves
from slipway.export.symbol_table import expression_of
from slipway.program.contract import Contract, Relation, Symbol
from slipway.program.expressions import (
    Comparison,
    Constant,
    holds,
    linear_form,
    symbols_of,
)

__all__ = ["Traced", "Tracer", "settle"]

_FAR = 1 << 40
# Where the result has the shape of the operand, these give the operand. Tracing leaves them out, or
# puts them in, where a size of 1 makes a tensor contiguous, or spares a broadcast or a selection.
_LEAVE_VALUES = (
    torch.ops.aten.alias.default,
    torch.ops.aten.contiguous.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.view.default,
)

_FEW = 2
"""So many sizes that a relation excludes are tried, each by tracing the model again."""


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
    return replace(contract, relations=tuple(kept), notes=tuple(notes))


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
        raise narrowing_error(equalities or narrowings, traced.derivation.contract.symbols)


def _needless_relations(tracer: Tracer, traced: Traced) -> set[Relation]:
    """Returns the relations that only exclude sizes for which the graph is valid all the same."""
    contract = traced.derivation.contract
    stated = traced.declared.conditions(contract.symbols)
    # For each of these relations, what holds at the sizes that it excludes.
    found: dict[Relation, set[str]] = {}
    answers: dict[tuple[int, int], set[str] | None] = {}
    for relation in contract.relations:
        if relation.condition in stated or relation in traced.derivation.hinted:
            continue
        excluded = _excluded_values(relation, contract.symbols)
        for point in excluded:
            if point not in answers:
                answers[point] = _relations_at(tracer, traced, *point)
        demands = [answers[point] for point in excluded]
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


def _excluded_values(relation: Relation, symbols: Sequence[Symbol]) -> list[tuple[int, int]]:
    """Returns the symbol and the values if a relation only excludes a few of one symbol."""
    match relation.condition:
        case Comparison(operator, expression, Constant(bound)) if operator != "==":
            form = linear_form(expression)
        case _:
            return []
    if form is None:
        return []
    factor, symbol, offset = form
    low, high = symbols[symbol.index].minimum, symbols[symbol.index].maximum
    near = range((bound - offset) // factor - 1, (bound - offset) // factor + 3)
    ends = [*range(low, low + _FEW + 1)]
    # Without an upper bound, far off stands for the sizes without end that may be excluded.
    last = high if high is not None else max(low, *near) + _FAR
    ends += range(last - _FEW, last + 1)
    inside = {item for item in (*near, *ends) if low <= item and (high is None or item <= high)}
    values = [0] * len(symbols)
    excluded = []
    for item in sorted(inside):
        values[symbol.index] = item
        if not holds(relation.condition, values):
            excluded.append((symbol.index, item))
    # Those that were tried decide: a comparison with a bound fails on one side of it, or at it.
    return excluded if len(excluded) <= _FEW else []


def _relations_at(tracer: Tracer, traced: Traced, symbol: int, value: int) -> set[str] | None:
    """Returns the relations that hold if a symbol has a value; None if the graph is another."""
    contract = traced.derivation.contract
    named = contract.symbols[symbol]
    binding = list(binding_of(contract, traced.example))
    binding[symbol] = value
    leaves = resized_leaves(contract, binding, traced.example)
    if leaves is None:
        return None
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
    key = frozenset(fixed.items())
    if key not in tracer.settled:
        call: Any = contract.input_tree.unflatten(iter(leaves))
        try:
            args, kwargs = call
            again = tracer.trace(args, kwargs, declared)
            tracer.settled[key] = again, settle(tracer, again)
        except ExportError:
            tracer.settled[key] = None  # it cannot be traced there, so it stays excluded
    found = tracer.settled[key]
    values = {sympy.Symbol(named.name, integer=True, nonnegative=True): value}
    if found is None or not _same_graph(traced, found[0], values):
        return None
    return set(map(str, found[1].relations))


@dataclass(frozen=True, slots=True)
class _View:
    """A traced graph where symbols have certain values."""

    traced: Traced
    values: Mapping[sympy.Symbol, int]

    def integer(self, value: Any) -> sympy.Basic | None:
        """Returns a size over the contract's symbols, be it a number, symbolic, or a node."""
        if isinstance(value, torch.fx.Node):
            value = value.meta.get("val")
        if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
            return None
        meaning = self.traced.derivation.table.meaning
        return expression_of(value).xreplace(meaning).xreplace(self.values)

    def shape(self, node: Any) -> list[sympy.Basic | None] | None:
        """Returns the shape of a node's result; None if it is no tensor."""
        value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
        return list(map(self.integer, value.shape)) if isinstance(value, torch.Tensor) else None

    def nodes(self, graph: torch.fx.Graph) -> list[torch.fx.Node]:
        """Returns all nodes but those that give their operand, and those that compute sizes.

        The latter are compared by what they give.
        """
        return [
            node
            for node in graph.nodes
            if not isinstance(node.meta.get("val"), int | torch.SymInt | torch.SymBool)
            and not self._gives_operand(node)
        ]

    def origin(self, argument: Any) -> Any:
        """Returns the node that an argument has its values from."""
        while isinstance(argument, torch.fx.Node) and self._gives_operand(argument):
            argument = argument.args[0]
        return argument

    def arguments(self, node: torch.fx.Node) -> dict[str, Any]:
        """Returns the arguments that matter by name, with the defaults of those not given."""
        if not isinstance(node.target, torch._ops.OpOverload):
            return {**{str(place): item for place, item in enumerate(node.args)}, **node.kwargs}
        parameters = node.target._schema.arguments
        found = {item.name: item.default_value for item in parameters if item.has_default_value()}
        found |= {item.name: value for item, value in zip(parameters, node.args, strict=False)}
        found |= node.kwargs
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            lengths = [(self.shape(found[name]) or [None] * 2)[-2] for name in ("query", "key")]
            if lengths == [1, 1]:
                # One position attends to itself, whether it may attend to later ones or not.
                del found["is_causal"]
        return found

    def _gives_operand(self, node: torch.fx.Node) -> bool:
        shape = self.shape(node)
        return (
            node.target in _LEAVE_VALUES and shape is not None and shape == self.shape(node.args[0])
        )


def _same_graph(first: Traced, second: Traced, values: Mapping[sympy.Symbol, int]) -> bool:
    """Returns whether two graphs are the same where symbols of the first have certain values."""
    return _same_nodes(
        _View(first, values),
        _View(second, {}),
        first.capture.exported.graph,
        second.capture.exported.graph,
    )


def _same_nodes(our: _View, their: _View, first: torch.fx.Graph, second: torch.fx.Graph) -> bool:
    """Returns whether two graphs and their subgraphs are the same, as two views have them."""
    ours, theirs = our.nodes(first), their.nodes(second)
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
        left, right = our.origin(left), their.origin(right)
        if isinstance(left, torch.fx.Node) and left in same:
            return same[left] is right
        integer = our.integer(left)
        if integer is not None:
            return bool(integer == their.integer(right))
        return type(left) is type(right) and bool(left == right)

    def same_arguments(left: dict[str, Any], right: dict[str, Any]) -> bool:
        return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)

    def same_subgraph(left: torch.fx.Node, right: torch.fx.Node) -> bool:
        one, other = (getattr(item.graph.owning_module, str(item.target)) for item in (left, right))
        if not isinstance(one, torch.fx.GraphModule) or not isinstance(other, torch.fx.GraphModule):
            return False
        return _same_nodes(our, their, one.graph, other.graph)

    return all(
        left.op == right.op
        and (left.op == "placeholder" or left.target == right.target)
        and (left.op != "get_attr" or same_subgraph(left, right))
        and same_arguments(our.arguments(left), their.arguments(right))
        and our.shape(left) == their.shape(right)
        for left, right in same.items()
    )
