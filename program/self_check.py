"""Whether a program does on this machine what it promises: what a torch_program_test runs."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from slipway.program.cases import verify
from slipway.program.contract import Contract
from slipway.program.corners import corner_bindings
from slipway.program.custom_ops import load_custom_ops
from slipway.program.errors import DataViolation, SlipwayError
from slipway.program.method import Method
from slipway.program.program import Program, load
from slipway.program.scalar_types import ScalarType
from slipway.program.torch_types import from_torch, to_torch
from slipway.program.words import type_of

__all__ = ["SelfCheckError", "run", "self_check"]

_MAXIMUM_CALLS = 12
"""For each method."""

_MAXIMUM_ELEMENTS = 1 << 20
"""In the inputs of a call."""


class SelfCheckError(SlipwayError):
    """A program does not do what its contract promises."""


def run(program: str, label: str, custom_ops: Collection[str]) -> int:
    """Checks a program among the runfiles, says what was done, and returns the exit code.

    Args:
      program: the runfiles path of its directory.
      label: what to call it.
      custom_ops: modules that register operators which it calls.
    """
    from runfiles import Runfiles

    runfiles = Runfiles.Create()
    location = runfiles.Rlocation(program) if runfiles is not None else None
    if location is None or not Path(location).is_dir():
        print(f"{program} is not among the runfiles: run this with `bazel test`", file=sys.stderr)
        return 2
    try:
        for line in self_check(Path(location), custom_ops):
            print(line)
    except SlipwayError as error:
        # Where the runfiles are is nothing that could be looked at when the test is over.
        print(f"FAILED: {str(error).replace(location, label)}", file=sys.stderr)
        return 1
    return 0


def self_check(directory: Path, custom_ops: Collection[str] = ()) -> Iterator[str]:
    """Loads a program, runs its cases, and calls each method at the corners of its contract.

    The calls have random tensors; integers are zero, which is an index into anything. Results must
    have the dtypes and shapes that the contract promises; their values are what cases are for.

    Yields:
      What was done, a line at a time.

    Raises:
      ProgramError: it cannot be loaded: a file is damaged, say.
      CaseFailedError: a case gives something else.
      SelfCheckError: a legal call fails, or gives something else than is promised.
    """
    program = load(directory, custom_ops=load_custom_ops(custom_ops))
    yield f"loaded, and digests verified: {program.digest}"
    answered = verify(program)
    yield f"cases: {len(program.cases)} run, {len(answered)} of them with results to compare"
    for name, method in program.methods.items():
        bindings = [
            *itertools.islice(corner_bindings(method.contract, _MAXIMUM_ELEMENTS), _MAXIMUM_CALLS)
        ]
        if not bindings:
            yield f"{name}: no call is small enough to be tried"
        for binding in bindings:
            yield f"{name}: {_try(program, method, binding)}"


def _try(program: Program, method: Method, binding: Sequence[int]) -> str:
    contract = method.contract
    where = ", ".join(
        f"{symbol.name} = {value}" for symbol, value in zip(contract.symbols, binding, strict=True)
    )
    tensors = _tensors(contract, binding)
    call: Any = contract.input_tree.unflatten(
        tensors[spec.name] if spec.tensor is not None else spec.constant for spec in contract.inputs
    )
    args, kwargs = call
    try:
        with torch.inference_mode():
            result = method(*args, **kwargs)
            _require_promised(contract, binding, result)
    except DataViolation as error:
        return f"{where or 'its only shapes'}: refused by the model's own assertion ({error})"
    except SelfCheckError as error:
        raise SelfCheckError(f"method '{contract.method}' for {where}: {error}") from error
    except Exception as error:
        raise SelfCheckError(
            f"method '{contract.method}' fails for {where}, which its contract allows: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        program.reset()
    return f"{where or 'its only shapes'}: fine"


def _tensors(contract: Contract, binding: Sequence[int]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, spec in contract.tensor_inputs.items():
        shape = [size.evaluate(binding) for size in spec.shape]
        dtype = to_torch(spec.dtype)
        if spec.dtype is ScalarType.BOOL:
            tensors[name] = torch.rand(shape, generator=generator) < 0.5
        elif dtype.is_floating_point or dtype.is_complex:
            tensors[name] = torch.rand(shape, generator=generator).to(dtype)
        else:
            tensors[name] = torch.zeros(shape, dtype=dtype)
    return tensors


def _require_promised(contract: Contract, binding: Sequence[int], result: object) -> None:
    promised = contract.output_shapes(binding)
    leaves = contract.output_tree.flatten(result, "result")
    for spec, leaf in zip(contract.outputs, leaves, strict=True):
        if spec.tensor is None:
            continue
        if not isinstance(leaf, torch.Tensor):
            raise SelfCheckError(f"output '{spec.name}' is {type_of(leaf)}, no tensor")
        sizes = promised[spec.name]
        if (
            from_torch(leaf.dtype) is not spec.tensor.dtype
            or leaf.dim() != len(sizes)
            or any(
                size not in (None, length) for size, length in zip(sizes, leaf.shape, strict=True)
            )
        ):
            raise SelfCheckError(
                f"output '{spec.name}' is {leaf.dtype}{list(leaf.shape)}; promised is {spec.tensor}"
            )
