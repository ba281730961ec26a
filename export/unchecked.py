"""What operators rely on without checking it, in eager mode or in their fake kernels."""

from __future__ import annotations

from collections.abc import Iterator

import sympy
import torch

from slipway.export.capture import Capture, Guard
from slipway.export.sources import user_line_of_node
from slipway.export.symbol_table import expression_of

__all__ = ["unchecked_guards"]


def unchecked_guards(capture: Capture) -> Iterator[Guard]:
    """Yields conditions without which an operator of the graph would read beyond its inputs."""
    for module in capture.exported.graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.target is torch.ops.aten.scaled_dot_product_attention.default:
                # On CPUs, keys that have no value take it from the memory behind.
                keys, values = (item.meta["val"].shape[-2] for item in node.args[1:3])
                condition = sympy.Eq(expression_of(keys), expression_of(values))
                yield Guard(condition, user_line_of_node(node))
