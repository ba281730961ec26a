"""Steps into and out of a dimension that a function is mapped over, as torch.vmap takes them.

Each step in changes the thread until the step out is taken: what the thread computes between them
is computed for the whole dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._functorch import predispatch

from slipway.program.errors import CorruptProgramError

__all__ = ["VMAP_STEPS", "check_nesting", "leaving_nesting", "nesting_change"]

VMAP_STEPS: dict[str, Callable[..., Any]] = {
    f"vmap::{step.__name__}": step
    for step in (
        predispatch._add_batch_dim,
        predispatch._remove_batch_dim,
        predispatch._vmap_decrement_nesting,
        predispatch._vmap_increment_nesting,
        predispatch.lazy_load_decompositions,
    )
}
"""What tracing leaves of torch.vmap, and of operators that are built on it, by name."""

_CHANGES: dict[object, int] = {
    predispatch._vmap_increment_nesting: 1,
    predispatch._vmap_decrement_nesting: -1,
}


def nesting_change(node: fx.Node) -> int:
    """Returns how many more mapped dimensions there are after a node than before it."""
    return _CHANGES.get(node.target, 0)


def check_nesting(graph: fx.Graph) -> None:
    """Checks that a graph leaves each mapped dimension that it enters, and no other.

    Subgraphs are graphs of their own, and are not looked at.

    Raises:
      CorruptProgramError: it does not.
    """
    depth = 0
    for node in graph.nodes:
        depth += nesting_change(node)
        if depth < 0:
            break
    if depth:
        raise CorruptProgramError(
            "a graph does not leave the dimensions that it maps over as it enters them, which "
            "would change the thread that runs it; export the program again"
        )


def leaving_nesting(module: fx.GraphModule) -> Callable[..., Any]:
    """Returns a graph's function, which leaves the thread as it was though an operator fails.

    Args:
      module: whose graphs, subgraphs included, `check_nesting` finds nothing wrong with.
    """
    forward: Callable[..., Any] = module.forward
    if not any(
        nesting_change(node)
        for part in module.modules()
        if isinstance(part, fx.GraphModule)
        for node in part.graph.nodes
    ):
        return forward

    @functools.wraps(forward)
    def leaving(*arguments: Any) -> Any:
        depth = torch._C._functorch.get_dynamic_layer_stack_depth()
        try:
            return forward(*arguments)
        except BaseException:
            torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
            raise

    return leaving
