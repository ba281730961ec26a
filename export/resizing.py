"""Example inputs of other sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from slipway.program.contract import Contract
from slipway.program.torch_types import from_torch

__all__ = ["binding_of", "resized_leaves", "without_empty_tensors"]


def binding_of(contract: Contract, leaves: Sequence[object]) -> tuple[int, ...]:
    """Returns the values of the symbols that a call implies. Raises: ContractViolation.

    Args:
      contract: of the call.
      leaves: of the call, in the order of `contract.inputs`.
    """
    return contract.check(
        {
            spec.name: (from_torch(leaf.dtype), leaf.shape)
            for spec, leaf in zip(contract.inputs, leaves, strict=True)
            if isinstance(leaf, torch.Tensor)
        }
    )


def resized_leaves(
    contract: Contract,
    binding: Sequence[int],
    example: Sequence[object],
    maximum_elements: int | None = None,
    *,
    whole: bool = False,
) -> list[object] | None:
    """Returns inputs of the sizes that a binding gives, or None if there would be too many.

    Their values are drawn from the example's, which are sure to be sensible: indices stay within
    their tables, masks stay masks. What is empty in the example, as a cache may be at first, gets
    random numbers, or zeros where it is of integers or booleans.

    Args:
      contract: whose inputs they are.
      binding: a value for each symbol.
      example: the leaves of the example call, in the order of `contract.inputs`.
      maximum_elements: in all tensors together.
      whole: whether the example is repeated or cut off along the dimensions that change, so that
        matrices stay what they are. Otherwise each element is drawn by itself, which shows more.
    """
    generator = torch.Generator().manual_seed(sum(binding))
    leaves: list[object] = []
    total = 0
    for spec, value in zip(contract.inputs, example, strict=True):
        if spec.tensor is None or not isinstance(value, torch.Tensor):
            leaves.append(value)
            continue
        shape = [size.evaluate(binding) for size in spec.tensor.shape]
        count = math.prod(shape)
        total += count
        if maximum_elements is not None and total > maximum_elements:
            return None
        if count and not value.numel():
            leaves.append(_made_up(shape, value.dtype, generator))
            continue
        if whole:
            leaves.append(_repeated(value.detach(), shape) if count else value.new_zeros(shape))
            continue
        flat = value.detach().reshape(-1)
        picked = torch.randint(max(1, flat.numel()), (count,), generator=generator)
        leaves.append(flat[picked].reshape(shape))
    return leaves


def without_empty_tensors(contract: Contract, example: Sequence[object]) -> Sequence[object]:
    """Returns the example with sizes of 2 in place of 0, if that is legal, or as it is."""
    binding = tuple(
        value or min(2, symbol.maximum or 2)
        for value, symbol in zip(binding_of(contract, example), contract.symbols, strict=True)
    )
    if not contract.is_legal(binding):
        return example
    return resized_leaves(contract, binding, example, whole=True) or example


def _repeated(value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Returns a tensor's elements again and again, or the first of them, along each dimension."""
    for dimension, size in enumerate(shape):
        if size != value.shape[dimension]:
            # Not index_select, which has no kernel for unsigned integers of more than a byte.
            places = torch.arange(size) % value.shape[dimension]
            before: list[slice | torch.Tensor] = [slice(None)] * dimension
            value = value[(*before, places)]
    return value.clone()


def _made_up(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.zeros(shape, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype)
