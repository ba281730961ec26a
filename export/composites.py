"""Composite operators over sequences of any length.

Each is one operator in a graph, but what torch runs of it when it traces takes the length as a
plain integer, which would be the example's, makes a length of which it knows nothing, or looks at
values.
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
    """Returns what the operator does, without a look at the number that it divides by."""
    rows = inputs.reshape(1, -1) if inputs.dim() < 2 else inputs
    weights = [item for item in (fweights, aweights) if item is not None]
    product = weights[0] if len(weights) == 1 else weights[0] * weights[1] if weights else None
    total = torch.full((), rows.shape[1], device=rows.device) if product is None else product.sum()

    def weighted(values: torch.Tensor) -> torch.Tensor:
        return values if product is None else values * product

    divisor = total - correction
    if product is not None and aweights is not None and correction != 0:
        divisor = total - correction * (product * aweights).sum() / total
    centred = rows - (weighted(rows).sum(1) / total).unsqueeze(1)
    return (centred @ weighted(centred).mT.conj() / divisor.clamp(min=0)).squeeze()


def _gradient(
    inputs: torch.Tensor,
    *,
    spacing: float | Sequence[float] | None = None,
    dim: int | Sequence[int] | None = None,
    edge_order: int = 1,
) -> list[torch.Tensor]:
    """Returns what the operator does where spacing is regular, by what neighbours are."""
    if dim is None:
        dim = range(inputs.dim())
    dimensions = [dim] if isinstance(dim, int) else list(dim)
    if not isinstance(spacing, Sequence):
        spacing = [1 if spacing is None else spacing] * len(dimensions)
    return [
        _slope(inputs, dimension, edge_order) / step
        for dimension, step in zip(dimensions, spacing, strict=True)
    ]


def _slope(inputs: torch.Tensor, dimension: int, edge_order: int) -> torch.Tensor:
    """Returns the slope along a dimension, whose elements are one apart."""
    length = inputs.shape[dimension]
    torch._check(length > edge_order)  # type: ignore[no-untyped-call]
    after, before = inputs.roll(-1, dimension), inputs.roll(1, dimension)
    first, last = after - inputs, inputs - before
    if edge_order == 2:
        first = 2 * first - (inputs.roll(-2, dimension) - inputs) / 2
        last = 2 * last - (inputs - inputs.roll(2, dimension)) / 2
    place = torch.arange(length, device=inputs.device)
    place = place.reshape(-1, *[1] * (inputs.dim() - 1 - dimension % inputs.dim()))
    slopes = torch.where(place == 0, first, (after - before) / 2)
    return torch.where(place == length - 1, last, slopes)


def _take_along_dim(
    inputs: torch.Tensor, indices: torch.Tensor, dim: int | None = None
) -> torch.Tensor:
    """Returns what the operator does, by `gather` of tensors that have been broadcast."""
    if dim is None:
        return inputs.reshape(-1).gather(0, indices.reshape(-1))
    shapes = list(inputs.shape), list(indices.shape)
    lengths = [shape.pop(dim) for shape in shapes]
    common = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    place = dim % inputs.dim()
    inputs, indices = (
        tensor.expand(*common[:place], length, *common[place:])
        for tensor, length in zip((inputs, indices), lengths, strict=True)
    )
    return inputs.gather(dim, indices)


_KERNELS = {
    torch.ops.aten.cov.default: _cov,
    torch.ops.aten.diff.default: _diff,
    torch.ops.aten.gradient.array: _gradient,
    torch.ops.aten.gradient.scalararray: _gradient,
    torch.ops.aten.gradient.scalarint: _gradient,
    torch.ops.aten.gradient.scalarrayarray: _gradient,
    torch.ops.aten.gradient.scalarrayint: _gradient,
    torch.ops.aten.max_pool1d.default: _max_pool1d,
    torch.ops.aten.take_along_dim.default: _take_along_dim,
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
