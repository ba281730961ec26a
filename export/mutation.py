"""Finds what a graph changes in place."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from slipway.program.mutation import written_arguments

__all__ = ["mutated_inputs", "storage_of", "written_storages"]


def mutated_inputs(graph: torch.fx.Graph, inputs: Container[str]) -> list[int]:
    """Returns which inputs running a graph changes, themselves or by way of a view.

    Args:
      graph: as torch.export gives it, in which values share storage as they will when it runs.
      inputs: the names of the placeholders that count; others are left out of the numbering.
    """
    changed = written_storages(graph)
    placeholders = [
        node for node in graph.nodes if node.op == "placeholder" and node.name in inputs
    ]
    return [place for place, node in enumerate(placeholders) if storage_of(node) in changed]


def written_storages(graph: torch.fx.Graph) -> set[int]:
    """Returns the storages that running a graph changes, as `storage_of` has them."""
    written = (node for changing in graph.nodes for node in written_arguments(changing))
    return {storage for storage in map(storage_of, written) if storage is not None}


def storage_of(node: Any) -> int | None:
    """Returns what identifies the storage of a node's tensor; None if it has none."""
    value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    while is_functorch_wrapped_tensor(value):
        # What associative_scan combines is traced under vmap; such a tensor only wraps another.
        value = get_unwrapped(value)
    storage: int = value.untyped_storage()._cdata
    return storage
