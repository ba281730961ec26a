"""Decides whether two traces of a model are the same graph.

They are if they do the same steps in the same order on tensors of the same shapes. Steps that give
their operand do not count, and sizes are compared by value, however they are computed. So is what
depends on weights and sizes only, where the steps differ: a table of positions that is resized for
all images but those for which it has the right size is the same table for these.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch.fx.node import map_aggregate

from slipway.export.mutation import storage_of, written_storages
from slipway.export.symbol_table import expression_of

__all__ = ["View", "same_graph"]

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

_LARGEST = 1 << 24
"""So many elements what is known may have: tables of positions have fewer, and all the weights of a
model, when they are unpacked from integers, would not fit into memory once more."""


@dataclass(frozen=True, slots=True)
class View:
    """How a traced graph looks where some symbols have certain values.

    Attributes:
      meaning: for each symbol of torch in the graph, an expression over the contract's.
      values: of symbols of the contract.
      weights: the values of placeholders, by name.
      known: what nodes give that depend on nothing else; they are compared by that.
      written: the storages that the graph writes into. With these it matters whether a step gives
        its operand itself or a copy, and so every step counts.
    """

    meaning: Mapping[sympy.Symbol, sympy.Basic]
    values: Mapping[sympy.Symbol, int] = field(default_factory=dict)
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    known: Mapping[torch.fx.Node, Any] = field(default_factory=dict)
    written: Set[int] = frozenset()

    def integer(self, value: Any) -> sympy.Basic | None:
        """Returns a size over the contract's symbols, be it a number, symbolic, or a node.

        Likewise a condition on sizes, as is asserted of those that depend on values.
        """
        if isinstance(value, torch.fx.Node):
            value = value.meta.get("val")
        if isinstance(value, bool) or not isinstance(value, int | torch.SymInt | torch.SymBool):
            return None
        return expression_of(value).xreplace(self.meaning).xreplace(self.values)

    def shape(self, node: Any) -> list[sympy.Basic | None] | None:
        """Returns the shape of a node's result; None if it is no tensor."""
        value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
        return list(map(self.integer, value.shape)) if isinstance(value, torch.Tensor) else None

    def nodes(self, graph: torch.fx.Graph) -> list[torch.fx.Node]:
        """Returns all nodes but those that give their operand, compute sizes, or are known.

        The latter two are compared by what they give. Nor does it return what tracing asserts by
        itself where a size is bounded, that no more elements are found than there are.
        """
        return [
            node
            for node in graph.nodes
            if not isinstance(node.meta.get("val"), int | torch.SymInt | torch.SymBool)
            and not self._gives_operand(node)
            and not _asserts_most_found(node)
            and node not in self.known
        ]

    def with_known(self, graph: torch.fx.Graph) -> View:
        """Returns a view that knows what depends on weights and sizes only."""
        known: dict[torch.fx.Node, Any] = {}

        def value(item: Any) -> Any:
            if not isinstance(item, torch.fx.Node | torch.SymInt):
                return item
            if isinstance(item, torch.fx.Node) and item in known:
                return known[item]
            return int(self.integer(item))  # type: ignore[arg-type]

        for node in graph.nodes:
            if node.op == "placeholder" and node.name in self.weights:
                known[node] = self.weights[node.name]
            elif _depends_on_arguments_only(node) and self._is_small(node):
                try:
                    arguments = map_aggregate((node.args, node.kwargs), value)
                    known[node] = node.target(*arguments[0], **arguments[1])
                except Exception:
                    pass  # of the inputs' values, or of sizes that vary; or it fails, as it would
            if storage_of(node) in self.written:
                known.pop(node, None)
        return replace(self, known=known)

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

    def _is_small(self, node: torch.fx.Node) -> bool:
        count = sympy.prod(size for size in self.shape(node) or [] if size is not None)
        return isinstance(count, sympy.Integer | int) and count <= _LARGEST

    def _gives_operand(self, node: torch.fx.Node) -> bool:
        if node.target not in _LEAVE_VALUES:
            return False
        operand, shape = node.args[0], self.shape(node)
        return (
            shape is not None
            and shape == self.shape(operand)
            and storage_of(node) not in self.written
            and storage_of(operand) not in self.written
        )


def _asserts_most_found(node: torch.fx.Node) -> bool:
    """Returns whether a node asserts that no more elements are found than there are."""
    match node:
        case torch.fx.Node(
            target=torch.ops.aten._assert_scalar.default,
            args=(
                torch.fx.Node(target=operator.le, args=(torch.fx.Node() as count, int(most))),
                *_,
            ),
        ) if count.target is torch.ops.aten.sym_size.int:
            found = count.args[0]
        case _:
            return False
    match found:
        case torch.fx.Node(target=torch.ops.aten.nonzero.default, args=(torch.fx.Node() as where,)):
            pass
        case torch.fx.Node(target=torch.ops.aten.index.Tensor, args=(_, [*indices])):
            given = [index for index in indices if isinstance(index, torch.fx.Node)]
            if len(given) > 1 or given[0].meta["val"].dtype is not torch.bool:
                return False
            (where,) = given
        case _:
            return False
    elements = where.meta["val"].numel()
    if isinstance(elements, torch.SymInt):
        elements = elements.node.shape_env.bound_sympy(elements.node.expr).upper
    return bool(elements <= most)


def _depends_on_arguments_only(node: torch.fx.Node) -> bool:
    """Returns whether a node gives the same for the same arguments, and does nothing else."""
    if node.target is operator.getitem:
        return True
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and not node.target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in node.target.tags
    )


def same_graph(our: View, their: View, first: torch.fx.Graph, second: torch.fx.Graph) -> bool:
    """Returns whether two graphs and their subgraphs compute the same, step by step.

    Args:
      our, their: how the two graphs are looked at.
      first, second: the graphs.
    """
    our = replace(our, written=written_storages(first))
    their = replace(their, written=written_storages(second))
    return _same_steps(our, their, first, second) or _same_steps(
        our.with_known(first), their.with_known(second), first, second
    )


def _same_steps(our: View, their: View, first: torch.fx.Graph, second: torch.fx.Graph) -> bool:
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
        if isinstance(left, torch.fx.Node) and left in our.known:
            return isinstance(right, torch.fx.Node) and _close(
                our.known[left], their.known.get(right)
            )
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
        return same_graph(our, their, one.graph, other.graph)

    return all(
        left.op == right.op
        and (left.op == "placeholder" or left.target == right.target)
        and (left.op != "get_attr" or same_subgraph(left, right))
        and same_arguments(our.arguments(left), their.arguments(right))
        and our.shape(left) == their.shape(right)
        for left, right in same.items()
    )


def _close(one: Any, other: Any) -> bool:
    """Returns whether two values differ at most by rounding, as the gate allows."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    try:
        torch.testing.assert_close(one, other, equal_nan=True)
    except AssertionError:
        return False
    return True
