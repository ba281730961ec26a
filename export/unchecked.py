"""What a graph relies on without tracing it, or operators without checking it."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import sympy
import torch

from slipway.export.capture import Capture, Guard
from slipway.export.sources import user_line_of_node
from slipway.export.symbol_table import expression_of

__all__ = ["unchecked_guards"]

_DIVISIONS = {operator.floordiv, operator.mod, operator.truediv}


def unchecked_guards(capture: Capture) -> Iterator[Guard]:
    """Yields conditions without which the graph would divide by 0 or read beyond its inputs."""
    # Not of its subgraphs, which may be left out for just those sizes.
    for node in capture.exported.graph.nodes:
        divisor = node.args[1] if node.target in _DIVISIONS else None
        if isinstance(divisor, torch.fx.Node) and divisor.target is torch.sym_float:
            divisor = divisor.args[0]
        size = divisor.meta["val"] if isinstance(divisor, torch.fx.Node) else None
        if isinstance(size, torch.SymInt):
            value = expression_of(size)
            # Not evaluated, for torch takes sizes to be positive.
            condition = sympy.Ne(value, 0, evaluate=False)
            yield Guard(condition, capture.divisor_lines.get(str(value)))
    for module in capture.exported.graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.target is torch.ops.aten.scaled_dot_product_attention.default:
                # On CPUs, keys that have no value take it from the memory behind.
                keys, values = (item.meta["val"].shape[-2] for item in node.args[1:3])
                condition = sympy.Eq(expression_of(keys), expression_of(values))
                yield Guard(condition, user_line_of_node(node))
