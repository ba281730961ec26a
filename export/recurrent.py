"""Recurrent layers over sequences of any length.

They are one operator in a graph, but torch's own kernels for tracing take the steps one by one,
which fixes how many there are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch

__all__ = ["recurrent_layers_of_any_length"]


def _require(condition: bool) -> None:
    torch._check(condition)  # type: ignore[no-untyped-call]


def _lstm(
    inputs: torch.Tensor, states: Sequence[torch.Tensor], *others: Any
) -> tuple[torch.Tensor, ...]:
    hidden, cells = states
    _require(cells.shape[1] == hidden.shape[1])
    return *_recurrent(inputs, hidden, *others), cells.new_empty(cells.shape)


def _recurrent(
    inputs: torch.Tensor,
    hidden: torch.Tensor,
    weights: Sequence[torch.Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    """Returns what a layer gives of all steps and of the last, as to shapes and layouts."""
    steps, rows = (inputs.shape[1], inputs.shape[0]) if batch_first else inputs.shape[:2]
    _require(inputs.shape[2] == weights[0].shape[1])
    _require(hidden.shape[1] == rows)
    results = inputs.new_empty(steps, rows, hidden.shape[2] * (2 if bidirectional else 1))
    if batch_first:
        results = results.transpose(0, 1)
    return results, hidden.new_empty(hidden.shape)


_KERNELS: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    torch.ops.aten.gru.input: _recurrent,
    torch.ops.aten.lstm.input: _lstm,
    torch.ops.aten.rnn_relu.input: _recurrent,
    torch.ops.aten.rnn_tanh.input: _recurrent,
}


@contextlib.contextmanager
def recurrent_layers_of_any_length() -> Iterator[None]:
    """Has tracing find out no more of recurrent layers than the shapes of what they give."""
    with contextlib.ExitStack() as stack:
        for operator, kernel in _KERNELS.items():
            # Torch remembers which kernel it found.
            stack.callback(operator._dispatch_cache.clear)
            kernels = dict.fromkeys(operator.py_kernels, kernel)
            stack.enter_context(mock.patch.dict(operator.py_kernels, kernels))
            operator._dispatch_cache.clear()
        yield
