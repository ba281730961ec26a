"""Filling by a mask as the host does it fastest, in graphs that run on the host.

Torch looks at one element after the other, which in attention takes longer than the softmax does.
Clamping does the same with whole vectors: between the value and itself where the mask is true, and
between the infinities elsewhere. Only not-a-number would stay where it ought to be filled.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import fx

__all__ = ["clamp_by_masks", "masked_fill"]

_aten = torch.ops.aten


def masked_fill(x: torch.Tensor, mask: torch.Tensor, value: float) -> torch.Tensor:
    """Returns what `torch.masked_fill` does, faster where a mask is for many rows of float32.

    It is written in TorchScript, since that depends on the sizes and the values.

    Args:
      x: of any shape and dtype.
      mask: bool, of a shape that can be broadcast with that of `x`.
      value: what to put where the mask is true; neither zero, whose sign clamping leaves alone, nor
        not-a-number.
    """
    if (
        x.dtype != torch.float32
        or not x.is_contiguous()
        or mask.dim() == 0
        or mask.size(-1) != x.size(-1)
        or x.numel() == 0
        or mask.numel() * 4 > x.numel()
        or torch.isnan(x.sum()).item()
    ):
        return torch.masked_fill(x, mask, value)
    least = torch.where(mask, value, -float("inf"))
    most = torch.where(mask, value, float("inf"))
    return torch.clamp(x, least, most)


def clamp_by_masks(graph: fx.Graph) -> fx.Graph:
    """Returns a graph that gives the same, with this module's `masked_fill` in it.

    Args:
      graph: what takes and gives tensors on the host. It is not changed.

    Returns:
      A graph with the same inputs; `graph` itself if nothing in it is filled by a mask.
    """
    changed = copy.deepcopy(graph)
    found = [node for node in changed.nodes if _is_masked_fill(node)]
    for node in found:
        x, mask, value = node.args
        node.target = masked_fill
        node.args = (x, mask, float(value))
    return changed if found else graph


def _is_masked_fill(node: fx.Node) -> bool:
    if node.target is not _aten.masked_fill.Scalar or node.kwargs:
        return False
    value = node.args[2]
    return (
        isinstance(value, int | float)
        and value != 0
        and (abs(value) <= torch.finfo(torch.float32).max or math.isinf(value))
        and (isinstance(value, float) or abs(value) <= 2**53)
    )
