"""Composite operators over sequences of any length.

Each is one operator in a graph, but what torch runs of it when it traces takes the length as a
plain integer, which would be the example's, makes a length of which it knows nothing, or asks
for the value of a tensor that it made of one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from unittest import mock

import torch

__all__ = ["composites_of_any_length"]


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


def _diff(
    inputs: torch.Tensor,
    n: int = 1,
    dim: int = -1,
    prepend: torch.Tensor | None = None,
    append: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns what the operator does, by slices, which an empty sequence has as well."""
    parts = [part for part in (prepend, inputs, append) if part is not None]
    differences = torch.cat(parts, dim) if len(parts) > 1 else inputs.clone()
    subtract = torch.logical_xor if differences.dtype is torch.bool else torch.sub
    for _ in range(n):
        later = torch.ops.aten.slice(differences, dim, 1)
        differences = subtract(later, torch.ops.aten.slice(differences, dim, 0, -1))
    return differences


def _cov(
    inputs: torch.Tensor,
    *,
    correction: int = 1,
    fweights: torch.Tensor | None = None,
    aweights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns what the operator does, without asking a tensor whether there are enough columns."""
    covariance: torch.Tensor
    if fweights is not None or aweights is not None:
        operator, key = torch.ops.aten.cov.default, torch._C.DispatchKey.CompositeImplicitAutograd
        covariance = operator._op_dk(
            key, inputs, correction=correction, fweights=fweights, aweights=aweights
        )
        return covariance
    rows = inputs if inputs.ndim == 2 else inputs.reshape(1, -1)
    count = rows.shape[1]
    centred = rows - rows.sum(1, keepdim=True) / count
    degrees = torch.sym_max(count - correction, 0)  # type: ignore[no-untyped-call]
    covariance = centred @ centred.mT.conj() / degrees
    return covariance.squeeze()


_KERNELS = {
    torch.ops.aten.cov.default: _cov,
    torch.ops.aten.diff.default: _diff,
    torch.ops.aten.max_pool1d.default: _max_pool1d,
}


@contextlib.contextmanager
def composites_of_any_length() -> Iterator[None]:
    """Has tracing find the length of what these operators give from that of their inputs."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    with contextlib.ExitStack() as stack:
        for operator, kernel in _KERNELS.items():
            # Torch remembers which kernel it found.
            stack.callback(operator._dispatch_cache.clear)
            stack.enter_context(mock.patch.dict(operator.py_kernels, {key: kernel}))
            operator._dispatch_cache.clear()
        yield
