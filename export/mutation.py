"""Finds what a graph changes in place."""

from __future__ import annotations

from collections.abc import Container, Iterator

import torch

__all__ = ["mutated_inputs"]

# They write running statistics without saying so in their schemas: the positions of the statistics
# and of the flag that has them written.
_STATISTICS = {
    torch.ops.aten.batch_norm.default: ((3, 4), 5),
    torch.ops.aten.instance_norm.default: ((3, 4), 5),
}


def mutated_inputs(graph: torch.fx.Graph, inputs: Container[str]) -> list[int]:
    """Returns which inputs running a graph changes, themselves or by way of a view.

    Args:
      graph: as torch.export gives it, in which values share storage as they will when it runs.
      inputs: the names of the placeholders that count; others are left out of the numbering.
    """
    changed = {
        _storage(written)
        for node in graph.nodes
        for written in _written(node)
        if _has_storage(written)
    }
    placeholders = [
        node for node in graph.nodes if node.op == "placeholder" and node.name in inputs
    ]
    return [
        place
        for place, node in enumerate(placeholders)
        if _has_storage(node) and _storage(node) in changed
    ]


def _written(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """Yields the tensors that a node writes into."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    if node.target in _STATISTICS:
        positions, flag = _STATISTICS[node.target]
        if node.args[flag]:
            yield from _tensors([node.args[position] for position in positions])
    for position, parameter in enumerate(node.target._schema.arguments):
        if parameter.alias_info is None or not parameter.alias_info.is_write:
            continue
        value = node.kwargs.get(parameter.name)
        if position < len(node.args):
            value = node.args[position]
        yield from _tensors(value if isinstance(value, list | tuple) else [value])


def _tensors(values: object) -> Iterator[torch.fx.Node]:
    assert isinstance(values, list | tuple)
    yield from (value for value in values if isinstance(value, torch.fx.Node))


def _has_storage(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _storage(node: torch.fx.Node) -> int:
    storage: int = node.meta["val"].untyped_storage()._cdata
    return storage
