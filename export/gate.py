"""The differential gate: a program is kept only if it does what the model does.

Cases are the example, the corners of the contract and points between them. On each, the model runs
eagerly and the program, as read back from its protobuf form, runs on the same inputs; results are
compared with torch.testing's tolerances for their dtype (1.3e-6 relative and 1e-5 absolute for
float32). Shapes just outside the ranges must be refused.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.resizing import resized_leaves
from slipway.export.sources import user_line_of_exception
from slipway.program.contract import Contract, Symbol
from slipway.program.errors import ContractViolation
from slipway.program.program import Method
from slipway.program.trees import Tree

__all__ = ["check_against_eager"]

_MAXIMUM_ELEMENTS = 1 << 20
"""A case with more input elements than this is left out, so that a build does not wait for it."""

_MAXIMUM_CASES = 8

_UNBOUNDED = 97
"""What stands for the upper end of a symbol without one."""


def check_against_eager(
    model: Callable[..., Any], method: Method, example: Sequence[object]
) -> None:
    """Compares a method with the model that it was made from.

    Args:
      model: the module or function.
      method: the method, made from its protobuf form.
      example: the leaves of the example call, in the order of `contract.inputs`.

    Raises:
      ExportError: they differ, or the program refuses a legal call or accepts an illegal one.
    """
    contract = method.contract
    _compare(model, method, list(example), "on the example")
    for binding in itertools.islice(_bindings(contract), _MAXIMUM_CASES):
        leaves = resized_leaves(contract, binding, example, _MAXIMUM_ELEMENTS)
        if leaves is not None:
            where = ", ".join(
                f"{symbol.name} = {value}"
                for symbol, value in zip(contract.symbols, binding, strict=True)
            )
            _compare(model, method, leaves, f"for {where}")


def _compare(model: Callable[..., Any], method: Method, leaves: list[object], where: str) -> None:
    args, kwargs = _call(method.contract.input_tree, leaves)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(0)
            expected = model(*args, **kwargs)
        except Exception as error:
            raise ExportError(
                ExportErrorKind.INVALID_SPEC,
                f"the model itself fails {where}, which is declared legal: "
                f"{type(error).__name__}: {error}",
                "declare only shapes that the model can take, or mend the model",
                user_line_of_exception(error),
            ) from error
        args, kwargs = _call(method.contract.input_tree, leaves)
        torch.manual_seed(0)
        try:
            actual = method(*args, **kwargs)
        except ContractViolation as error:
            raise ExportError(
                ExportErrorKind.DIFFERS_FROM_EAGER,
                f"the program refuses {where}, which is declared legal: {error}",
                "this is a defect of Slipway; please report it with the model",
            ) from error
    try:
        torch.testing.assert_close(actual, expected, equal_nan=True)
    except AssertionError as error:
        training = isinstance(model, torch.nn.Module) and model.training
        raise ExportError(
            ExportErrorKind.DIFFERS_FROM_EAGER,
            f"the program and the model differ {where}: {' '.join(str(error).split())}",
            "the model is in training mode: call .eval() on it"
            if training
            else "remove whatever is random, depends on time or state, or on the example's sizes",
        ) from error


def _call(tree: Tree, leaves: Sequence[object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # A model may change its inputs, and then the other side must not see that.
    fresh = (leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    call: Any = tree.unflatten(fresh)
    args, kwargs = call
    return args, kwargs


def _bindings(contract: Contract) -> Iterator[tuple[int, ...]]:
    """Yields legal values of the symbols: all lowest, all highest, and some between."""
    if not contract.symbols:
        return
    source = random.Random(0)
    candidates = itertools.chain(
        [tuple(symbol.minimum for symbol in contract.symbols)],
        [tuple(_highest(symbol) for symbol in contract.symbols)],
        (
            tuple(source.randint(item.minimum, _highest(item)) for item in contract.symbols)
            for _ in range(64)
        ),
    )
    seen = set()
    for binding in candidates:
        if binding not in seen and contract.is_legal(binding):
            seen.add(binding)
            yield binding


def _highest(symbol: Symbol) -> int:
    return max(symbol.minimum, _UNBOUNDED) if symbol.maximum is None else symbol.maximum
