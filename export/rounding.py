"""Where an eager model computes otherwise than its graph, though it is the same model.

Where no gradient is wanted, `nn.MultiheadAttention`, `nn.TransformerEncoderLayer` and
`nn.TransformerEncoder` take a fast path of fused kernels, of which tracing sees nothing; of what is
padding that makes zeros. And `linear` sums in another order where its weight is a parameter that
may want one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from slipway.program.cases import TOLERANCES
from slipway.program.torch_types import from_torch

__all__ = ["computing_as_traced", "differ_by_rounding"]


_MANY_LAYERS = 4
"""How much wider the tolerances are: each layer rounds what the one before has rounded."""


@contextlib.contextmanager
def computing_as_traced(model: torch.nn.Module) -> Iterator[None]:
    """Has a model compute with the operators that tracing sees, on weights as in a program."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    parameters = [item for item in model.parameters() if item.requires_grad]
    torch.backends.mha.set_fastpath_enabled(False)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
        for parameter in parameters:
            parameter.requires_grad_(True)


def differ_by_rounding(first: Any, second: Any) -> bool:
    """Returns whether two results of a model differ at most as other ways to sum make them differ.

    That is relative to the largest magnitude in each tensor.
    """
    ours, our_tree = pytree.tree_flatten(first)
    theirs, their_tree = pytree.tree_flatten(second)
    return our_tree == their_tree and all(map(_near, ours, theirs))


def _near(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return bool(one == other)
    if one.shape != other.shape or one.dtype is not other.dtype:
        return False
    rtol, atol = TOLERANCES.get(from_torch(one.dtype), (0.0, 0.0))
    if not rtol:
        return torch.equal(one, other)
    finite = other[other.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    allowed = _MANY_LAYERS * (atol + rtol * largest)
    return torch.allclose(one, other, rtol=0, atol=allowed, equal_nan=True)
