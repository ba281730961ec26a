"""Puts what a graph asserts of its inputs' values into words that its user knows."""

from __future__ import annotations

import re

import torch

from slipway.export.sources import user_line_of_node
from slipway.export.symbol_table import SymbolTable

__all__ = ["describe_assertions"]


def describe_assertions(graph: torch.fx.Graph, table: SymbolTable) -> None:
    """Replaces torch's texts, which name its own symbols, by the condition in the contract's.

    What is not known before the model runs is called u0, u1, …; the line that gives it is quoted.
    """
    for node in graph.nodes:
        if node.target is not torch.ops.aten._assert_scalar.default:
            continue
        value = node.args[0].meta.get("val") if isinstance(node.args[0], torch.fx.Node) else None
        if not isinstance(value, torch.SymBool):
            continue
        condition = value.node._expr.xreplace(table.meaning)
        text = f"the inputs' values break an assertion of the model: {condition}"
        source = user_line_of_node(node)
        if source is not None and source.text and re.search(r"\bu\d+\b", str(condition)):
            text += f", from `{source.text}`"
        node.args = (node.args[0], text)
