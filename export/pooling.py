"""`max_pool1d` over sequences of any length.

It is one operator in a graph, but what torch runs of it when it traces takes the length as a plain
integer, which would be the example's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from unittest import mock

import torch

__all__ = ["pooling_of_any_length"]


def _max_pool1d(
    inputs: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> torch.Tensor:
    """Returns what the operator does, by the one for images, here one row high."""
    pooled = torch.max_pool2d(
        inputs.unsqueeze(-2),
        (1, *kernel),
        (1, *(stride or kernel)),
        (0, *padding),
        (1, *dilation),
        ceil_mode,
    )
    return pooled.squeeze(-2)


@contextlib.contextmanager
def pooling_of_any_length() -> Iterator[None]:
    """Has tracing find the length of what `max_pool1d` gives from that of its input."""
    operator = torch.ops.aten.max_pool1d.default
    kernels = {torch._C.DispatchKey.CompositeImplicitAutograd: _max_pool1d}
    with contextlib.ExitStack() as stack:
        # Torch remembers which kernel it found.
        stack.callback(operator._dispatch_cache.clear)
        stack.enter_context(mock.patch.dict(operator.py_kernels, kernels))
        operator._dispatch_cache.clear()
        yield
