"""What a graph asserts of its inputs' values, as errors of ours.

Torch's own assertions raise RuntimeError, like any failure, and on a GPU some of them end the
process. These are TorchScript too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from slipway.program.errors import DataViolation

__all__ = ["ASSERTIONS"]


def _assert_scalar(condition: bool, message: str) -> None:
    if not condition:
        raise DataViolation(message)


def _assert_tensor(condition: torch.Tensor, message: str = "an assertion of the model") -> None:
    if not bool(condition):
        raise DataViolation(message)


def _constrain_range(size: int, min: int | None = None, max: int | None = None) -> None:
    low = 0 if min is None else min
    allowed = f"{low}.." if max is None else f"{low}..{max}"
    if size < low or (max is not None and size > max):
        raise DataViolation(
            f"a size that the inputs' values determine is {size}; allowed: {allowed}"
        )


ASSERTIONS: dict[str, Callable[..., Any]] = {
    "aten::_assert_scalar.default": _assert_scalar,
    "aten::_assert_async.default": _assert_tensor,
    "aten::_assert_async.msg": _assert_tensor,
    "aten::sym_constrain_range.default": _constrain_range,
    "aten::sym_constrain_range_for_size.default": _constrain_range,
}
"""What runs in the place of operators that assert, by the operator's name."""
