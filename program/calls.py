"""Calls from Python: their arguments, and what is wrong with them before any size is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from slipway.program.contract import Contract, PythonValue
from slipway.program.errors import Violation
from slipway.program.scalar_types import ScalarType
from slipway.program.torch_types import from_torch
from slipway.program.trees import StructureError
from slipway.program.words import counted, type_of

__all__ = ["check_constant", "check_is_tensor", "flatten_call", "layout_violation"]


def flatten_call(
    contract: Contract, args: Sequence[object], kwargs: Mapping[str, object]
) -> list[object]:
    """Returns the leaves of a call, one for each of `contract.inputs`.

    Raises:
      StructureError: the call has other arguments, or they are nested otherwise.
    """
    positional, keyword = contract.input_tree.children
    if len(args) > len(contract.parameters):
        raise StructureError(
            Violation(
                code="structure",
                description=f"the call has {counted(len(args), 'positional argument')}; allowed: "
                f"{len(contract.parameters)} ({', '.join(contract.parameters)})",
                actual=str(len(args)),
                allowed=str(len(contract.parameters)),
            )
        )
    given = dict(zip(contract.parameters, args, strict=False))
    known = {*contract.parameters, *map(str, keyword.keys)}
    for name, value in kwargs.items():
        if name in given or name not in known:
            raise StructureError(
                Violation(
                    code="unknown_input",
                    description=f"argument '{name}' is given twice or unknown; the arguments are "
                    f"{', '.join(sorted(known))}",
                    input=name,
                )
            )
        given[name] = value
    leaves: list[object] = []
    for tree, names in ((positional, contract.parameters), (keyword, map(str, keyword.keys))):
        for name, child in zip(names, tree.children, strict=True):
            if name not in given:
                raise StructureError(
                    Violation(
                        code="missing_input",
                        description=f"argument '{name}' is missing",
                        input=name,
                    )
                )
            leaves += child.flatten(given[name], name)
    return leaves


def check_constant(name: str, value: object, expected: PythonValue) -> Iterator[Violation]:
    # NaN is the one value that is itself without being equal to itself.
    same = value == expected or (value != value and expected != expected)
    if type(value) is not type(expected) or not same:
        yield Violation(
            code="constant",
            description=f"argument '{name}' is {value!r}; allowed: exactly {expected!r}, for which "
            "the program was exported",
            input=name,
            actual=repr(value),
            allowed=repr(expected),
            nearest=repr(expected),
        )


def check_is_tensor(
    name: str, value: object, allowed: str, device: torch.device
) -> ScalarType | Violation:
    if not isinstance(value, torch.Tensor):
        actual, code = type_of(value), "structure"
    elif value.layout is not torch.strided:
        actual, code = f"a tensor of layout {value.layout}", "structure"
    elif value.device.type != device.type:
        actual, code = f"on device {value.device}", "structure"
        allowed += f" on {device}"
    else:
        try:
            return from_torch(value.dtype)
        except ValueError:
            actual, code = f"of dtype {value.dtype}", "dtype"
    return Violation(
        code=code,
        description=f"input '{name}' is {actual}; allowed: a tensor {allowed}",
        input=name,
        actual=actual,
        allowed=allowed,
    )


def layout_violation(name: str, tensor: torch.Tensor) -> Violation:
    actual = f"the strides {tensor.stride()} and the offset {tensor.storage_offset()}"
    return Violation(
        code="layout",
        description=f"input '{name}' has {actual}; allowed: those of a new tensor, since the "
        "model asked how its tensors lie in memory; pass "
        f"{name}.clone(memory_format=torch.contiguous_format)",
        input=name,
        actual=actual,
        allowed="contiguous, without offset",
    )
