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

import torch
from torch._dynamo.variables.tensor import TensorVariable
from torch._subclasses.fake_tensor import FakeTensor

from slipway.export.errors import ExportError, ExportErrorKind, SourceLine
from slipway.export.gate import compare, compared_bindings
from slipway.export.resizing import binding_of, resized_leaves
from slipway.export.sources import user_line
from slipway.program.program import Program

__all__ = ["differs_when_transposed", "record_layout_reads"]

_ELEMENTS = 1 << 20
"""A call with more elements is not made."""

_READS = ("dim_order", "is_contiguous", "storage_offset", "stride")


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
