"""Chooses the cases that travel with a program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from slipway.export.gate import bindings, call_text, run_model
from slipway.export.resizing import binding_of, resized_leaves
from slipway.program.cases import AnsweredCase, Case, RefusedCase, difference
from slipway.program.contract import Contract
from slipway.program.errors import CaseFailedError, ContractViolation
from slipway.program.weights import storage_problem

__all__ = ["make_cases"]

_MAXIMUM_ELEMENTS = 1 << 16
"""Of all inputs of a case together, and of all outputs: a program must not be mostly its cases."""

_REFUSED = 4

_PRECISE = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_UNITS = 4
"""By how many units in the last place inputs are moved: what a few layers make of rounding."""


def make_cases(
    model: torch.nn.Module, contract: Contract, example: Sequence[object], count: int
) -> tuple[list[Case], list[str]]:
    """Returns calls with the results that the model gives, and calls that must be refused.

    Calls for which the model magnifies rounding are left out: on another machine, which rounds
    otherwise, it gives other results.

    Args:
      model: run eagerly; its buffers are left as they were.
      contract: of the method.
      example: the leaves of the example call, whose values are those of the cases.
      count: how many answered cases at most; with none there are no refused ones either.

    Returns:
      The cases, and which calls were left out for their rounding, for people to read.
    """
    if not count:
        return [], []
    usual = binding_of(contract, example)
    answered: list[Case] = []
    notes = []
    for binding in dict.fromkeys((usual, *itertools.islice(bindings(contract), count + 2))):
        if len(answered) == count:
            break
        calls: list[list[object] | None] = [list(example)]
        if binding != usual:
            calls = [
                resized_leaves(contract, binding, example, _MAXIMUM_ELEMENTS, whole=whole)
                for whole in (False, True)
            ]
        magnifies = False
        for leaves in calls:
            case = None if leaves is None else _answered(model, contract, leaves)
            if leaves is None or case is None:
                continue
            magnifies = _magnifies_rounding(model, contract, leaves, case)
            if not magnifies:
                answered.append(case)
                break
        if magnifies:
            where = call_text(contract, binding)
            notes.append(f"no case{where and ' for '}{where}: the model magnifies rounding")
    return [*answered, *itertools.islice(_refused(contract, usual), _REFUSED)], notes


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
    outputs = _outputs(model, contract, leaves)
    if outputs is None:
        return None
    if sum(tensor.numel() for tensor in outputs.values()) > _MAXIMUM_ELEMENTS:
        return None
    if any(storage_problem(tensor) for tensor in (*inputs.values(), *outputs.values())):
        return None
    return AnsweredCase(contract.method, inputs, outputs)


def _outputs(
    model: torch.nn.Module, contract: Contract, leaves: Sequence[object]
) -> dict[str, torch.Tensor] | None:
    """Returns the tensors that a model gives for a call; None if it fails for that."""
    result = run_model(model, contract, leaves)
    if result is None:
        return None
    values = contract.output_tree.flatten(result, "output")
    return {
        spec.name: value
        for spec, value in zip(contract.outputs, values, strict=True)
        if isinstance(value, torch.Tensor)
    }


def _magnifies_rounding(
    model: torch.nn.Module, contract: Contract, leaves: Sequence[object], case: AnsweredCase
) -> bool:
    """Returns whether inputs that are rounded otherwise give what is no answer to a case."""
    generator = torch.Generator().manual_seed(0)
    outputs = _outputs(model, contract, [_rounded_otherwise(leaf, generator) for leaf in leaves])
    if outputs is None:
        return False
    try:
        for name, expected in case.outputs.items():
            difference(outputs[name], expected, 1, name)
    except CaseFailedError:
        return True
    return False


def _rounded_otherwise(leaf: object, generator: torch.Generator) -> object:
    """Returns a tensor with its numbers moved a little, but for whole ones, which are exact.

    Those of half precision stay too: cases may differ by about as much as their last digit.
    """
    if not isinstance(leaf, torch.Tensor) or leaf.dtype not in _PRECISE:
        return leaf
    signs = 2 * torch.randint(2, leaf.shape, generator=generator) - 1
    moved = leaf * (1 + signs.to(leaf.dtype) * _UNITS * torch.finfo(leaf.dtype).eps)
    parts = torch.view_as_real(leaf) if leaf.is_complex() else leaf.unsqueeze(-1)
    return torch.where((parts == parts.round()).all(-1), leaf, moved)


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
