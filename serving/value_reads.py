"""Whether a call looks at values of tensors, so that the host has to wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["find_value_read"]

_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_OPERATORS = {
    torch.ops.aten._linalg_check_errors.default,
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
}
_BRANCHES = {"cond", "while_loop"}

# These have to count what a mask selects.
_INDEXING = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
}
_MASKS = {torch.bool, torch.uint8}


def find_value_read(call: Callable[[], object]) -> str | None:
    """Runs a call, and returns the first operator in it that is known to look at values.

    Returns None if there is none. Torch marks such operators, but does not mark all of them.
    """
    watch = _Watch()
    with watch:
        call()
    return watch.found


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operators that its thread runs."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: str | None = None

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if self.found is None and _reads_values(func, args):
            self.found = str(func)
        result = NotImplemented
        if self.found is None and isinstance(func, torch._ops.OpOverload):
            with self:  # to see what it is made of, if it is, which in inference mode comes as one
                result = func.decompose(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is NotImplemented else result


def _reads_values(operator: Callable[..., Any], arguments: Sequence[Any]) -> bool:
    if not isinstance(operator, torch._ops.OpOverload):
        return operator.__name__ in _BRANCHES
    if operator in _INDEXING:
        return any(index is not None and index.dtype in _MASKS for index in arguments[1])
    return operator in _OPERATORS or not _TAGS.isdisjoint(operator.tags)
