"""Finds out whether a graph is valid only for tensors that lie in memory as the example's did.

Shapes say nothing of strides, so the graph of a model that asks for them (`x.stride(0)`,
`x.is_contiguous()`) takes the branch that the example took, whatever it is called with. Two things
tell: the model's own calls while it is traced, and a run of model and program on an example that
lies in memory otherwise.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import sympy
import torch
from torch._dynamo.variables.tensor import TensorVariable
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from slipway.export.errors import ExportError, ExportErrorKind, SourceLine
from slipway.export.gate import compare, compared_bindings
from slipway.export.resizing import binding_of, resized_leaves
from slipway.export.sources import user_line
from slipway.program.program import Program

__all__ = ["differs_when_transposed", "leave_layouts_to_operators", "record_layout_reads"]

_ELEMENTS = 1 << 20
"""A call with more elements is not made."""

_READS = ("dim_order", "is_contiguous", "storage_offset", "stride")

_CHOOSE_BY_LAYOUT = frozenset(
    (
        torch.ops.aten.conv1d.default,
        torch.ops.aten.conv2d.default,
        torch.ops.aten.conv3d.default,
        torch.ops.aten.einsum.default,
        torch.ops.aten.flatten.using_ints,
        torch.ops.aten.linear.default,
        torch.ops.aten.matmul.default,
        torch.ops.aten.reshape.default,
        torch.ops.aten.scaled_dot_product_attention.default,
    )
)
"""How these compute depends on how their operands lie in memory, and what they give does not."""

_CHOOSE_BY_SIZE = frozenset((torch.ops.aten.cdist.default,))
"""How these compute depends on whether they have many operands."""


@contextlib.contextmanager
def record_layout_reads(lines: list[SourceLine]) -> Iterator[None]:
    """Notes the lines of the user's code that ask how a tensor lies in memory.

    Torch asks all the time, which does not count: its operators run again when the graph does.
    """
    call_method = TensorVariable.call_method
    methods = {name: getattr(FakeTensor, name) for name in _READS}
    own = {name: method for name, method in methods.items() if name in vars(FakeTensor)}

    def note(file: str, line: int) -> None:
        source = user_line(file, line)
        if source is not None:
            lines.append(source)

    def read(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_dynamo_compiling():
                frame = sys._getframe(1)
                note(frame.f_code.co_filename, frame.f_lineno)
            return method(self, *args, **kwargs)

        return call

    # In strict mode, and in the branches of control flow, it is Dynamo that interprets the calls.
    def interpret(self: TensorVariable, tx: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if name in _READS:
            while tx.f_code.co_filename == read.__code__.co_filename:
                tx = tx.parent
            note(tx.f_code.co_filename, tx.lineno)
        return call_method(self, tx, name, *args, **kwargs)

    # Otherwise the model runs as it is, on tensors without data.
    TensorVariable.call_method = interpret  # type: ignore[method-assign]
    for name, method in methods.items():
        setattr(FakeTensor, name, read(method))
    try:
        yield
    finally:
        TensorVariable.call_method = call_method  # type: ignore[method-assign]
        for name in methods:
            if name in own:
                setattr(FakeTensor, name, own[name])
            else:
                delattr(FakeTensor, name)


@contextlib.contextmanager
def leave_layouts_to_operators() -> Iterator[None]:
    """Keeps operators from excluding sizes when they choose between a view and a copy, or a kernel.

    They ask whether one stride is another, which for some size, mostly 1, it is. The graph calls
    these operators as they are, so that they choose again when it runs. What is written to a place
    (`x[:n, index] = value`) loses its leading dimensions of 1 first, which broadcasting ignores.
    """
    proxy_call, evaluate_expr = proxy_tensor.proxy_call, ShapeEnv.evaluate_expr
    set_item = FakeTensor.__setitem__
    choosing = counting = False

    def call(mode: Any, operator: Any, *args: Any) -> Any:
        nonlocal choosing, counting
        before = choosing, counting
        choosing, counting = operator in _CHOOSE_BY_LAYOUT, operator in _CHOOSE_BY_SIZE
        try:
            return proxy_call(mode, operator, *args)
        finally:
            choosing, counting = before

    def write(self: FakeTensor, index: Any, value: Any) -> None:
        nonlocal choosing
        before, choosing = choosing, True
        try:
            set_item(self, index, value)
        finally:
            choosing = before

    def evaluate(self: ShapeEnv, condition: sympy.Basic, *args: Any, **kwargs: Any) -> sympy.Basic:
        match condition:
            case sympy.Le() | sympy.Gt() if counting:
                with self.suppress_guards():
                    return evaluate_expr(self, condition, *args, **kwargs)
            case sympy.Eq(args=sides) | sympy.Ne(args=sides) if choosing and _has_number(sides):
                with self.suppress_guards():
                    value = evaluate_expr(self, condition, *args, **kwargs)
                # If they are equal in the example, the graph is for that size alone.
                if (value == sympy.true) is isinstance(condition, sympy.Ne):
                    return value
        return evaluate_expr(self, condition, *args, **kwargs)

    with (
        mock.patch.object(proxy_tensor, "proxy_call", call),
        mock.patch.object(FakeTensor, "__setitem__", write),
        mock.patch.object(ShapeEnv, "evaluate_expr", evaluate),
    ):
        yield


def _has_number(sides: Sequence[sympy.Basic]) -> bool:
    """Returns whether something is compared with a number other than 0, which layouts are not."""
    return any(isinstance(side, sympy.Integer) and side.is_positive for side in sides)


def differs_when_transposed(
    model: torch.nn.Module, program: Program, name: str, example: Sequence[object]
) -> bool:
    """Returns whether a program goes wrong on tensors that lie in memory the other way round.

    Args:
      model: what the program was made from; its buffers are left as they were.
      program: its state is left as it was.
      name: of the method.
      example: the leaves of the example call, in the order of `contract.inputs`.
    """
    contract = program.methods[name].contract
    calls: list[Sequence[object]] = [example]
    if min(binding_of(contract, example), default=2) < 2:
        # A tensor with one dimension of more than 1 lies the same either way.
        larger = (binding for binding in compared_bindings(contract) if min(binding) > 1)
        resized = (resized_leaves(contract, binding, example, _ELEMENTS) for binding in larger)
        calls += itertools.islice((leaves for leaves in resized if leaves is not None), 1)
    return any(_differs_when_transposed(model, program, name, leaves) for leaves in calls)


def _differs_when_transposed(
    model: torch.nn.Module, program: Program, name: str, call: Sequence[object]
) -> bool:
    leaves = [_transposed(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in call]
    try:
        compare(model, program, name, leaves, "")
    except ExportError as error:
        # Where the model itself fails on such tensors, so does the program.
        return error.kind is not ExportErrorKind.INVALID_SPEC
    return False


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    """Returns an equal tensor, with its dimensions in reverse order in memory and gaps between."""
    room = torch.empty(*reversed(tensor.shape), 2, dtype=tensor.dtype, device=tensor.device)
    return room[..., 0].permute(tuple(reversed(range(tensor.dim())))).copy_(tensor)
