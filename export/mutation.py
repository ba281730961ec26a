"""Finds what a graph changes in place."""

from __future__ import annotations

from collections.abc import Container

import torch

from slipway.program.mutation import written_arguments

__all__ = ["mutated_inputs"]


def mutated_inputs(graph: torch.fx.Graph, inputs: Container[str]) -> list[int]:
    """Returns which inputs running a graph changes, themselves or by way of a view.

    Args:
      graph: as torch.export gives it, in which values share storage as they will when it runs.
      inputs: the names of the placeholders that count; others are left out of the numbering.
    """
    changed = {
        _storage(written)
        for node in graph.nodes
        for written in written_arguments(node)
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


def _has_storage(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _storage(node: torch.fx.Node) -> int:
    storage: int = node.meta["val"].untyped_storage()._cdata
    return storage
