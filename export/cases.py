"""Chooses the cases that travel with a program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from slipway.export.gate import bindings, run_model
from slipway.export.resizing import binding_of, resized_leaves
from slipway.program.cases import AnsweredCase, Case, RefusedCase
from slipway.program.contract import Contract
from slipway.program.errors import ContractViolation
from slipway.program.weights import storage_problem

__all__ = ["make_cases"]

_MAXIMUM_ELEMENTS = 1 << 16
"""Of all inputs of a case together, and of all outputs: a program must not be mostly its cases."""

_REFUSED = 4


def make_cases(
    model: torch.nn.Module, contract: Contract, example: Sequence[object], count: int
) -> list[Case]:
    """Returns calls with the results that the model gives, and calls that must be refused.

    Args:
      model: run eagerly; its buffers are left as they were.
      contract: of the method.
      example: the leaves of the example call, whose values are those of the cases.
      count: how many answered cases at most; with none there are no refused ones either.
    """
    if not count:
        return []
    usual = binding_of(contract, example)
    answered: list[Case] = []
    for binding in dict.fromkeys((usual, *itertools.islice(bindings(contract), count + 2))):
        calls: list[list[object] | None] = [list(example)]
        if binding != usual:
            calls = [
                resized_leaves(contract, binding, example, _MAXIMUM_ELEMENTS, whole=whole)
                for whole in (False, True)
            ]
        cases = (_answered(model, contract, leaves) for leaves in calls if leaves is not None)
        case = next((case for case in cases if case is not None), None)
        if case is not None and len(answered) < count:
            answered.append(case)
    return [*answered, *itertools.islice(_refused(contract, usual), _REFUSED)]


def _answered(
    model: torch.nn.Module, contract: Contract, leaves: list[object]
) -> AnsweredCase | None:
    """Returns the case of a call; None where it is too large, or the model refuses its values."""
    inputs = {
        spec.name: leaf.detach().clone()
        for spec, leaf in zip(contract.inputs, leaves, strict=True)
        if isinstance(leaf, torch.Tensor)
    }
    if sum(tensor.numel() for tensor in inputs.values()) > _MAXIMUM_ELEMENTS:
        return None
    result = run_model(model, contract, leaves)
    if result is None:
        return None
    values = contract.output_tree.flatten(result, "output")
    outputs = {
        spec.name: value
        for spec, value in zip(contract.outputs, values, strict=True)
        if isinstance(value, torch.Tensor)
    }
    if sum(tensor.numel() for tensor in outputs.values()) > _MAXIMUM_ELEMENTS:
        return None
    if any(storage_problem(tensor) for tensor in (*inputs.values(), *outputs.values())):
        return None
    return AnsweredCase(contract.method, inputs, outputs)


def _refused(contract: Contract, usual: Sequence[int]) -> Iterator[RefusedCase]:
    """Yields calls that lie just outside the contract."""
    for index, symbol in enumerate(contract.symbols):
        outside = [symbol.minimum - 1] + ([] if symbol.maximum is None else [symbol.maximum + 1])
        for value in outside:
            if value < 0:
                continue
            binding = (*usual[:index], value, *usual[index + 1 :])
            shapes = {
                name: (spec.dtype, tuple(size.evaluate(binding) for size in spec.shape))
                for name, spec in contract.tensor_inputs.items()
            }
            if any(size < 0 for _, shape in shapes.values() for size in shape):
                continue
            try:
                contract.check(shapes)
            except ContractViolation:
                yield RefusedCase(contract.method, shapes)
