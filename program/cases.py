"""Cases: calls that travel with a program, with the results that they must have, or with none.

They are run where a program is to be used, before it is: a loader that computes something else
there, or a contract that lets through what it must not, is found out before a caller is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from slipway.program.contract import TensorInputs
from slipway.program.contract_codec import scalar_type_from_proto
from slipway.program.errors import (
    CaseFailedError,
    ContractViolation,
    CorruptProgramError,
)
from slipway.program.scalar_types import ScalarType
from slipway.program.shards import checked_path, file_digest, open_shard
from slipway.program.torch_types import from_torch
from slipway.program.weights import save_tensors
from slipway.proto import program_pb2 as pb

if TYPE_CHECKING:
    from slipway.program.method import Method
    from slipway.program.program import Program

__all__ = [
    "CASES_DIRECTORY",
    "TOLERANCES",
    "AnsweredCase",
    "Case",
    "CaseResult",
    "RefusedCase",
    "case_inputs",
    "difference",
    "read_cases",
    "verify",
    "write_cases",
]

CASES_DIRECTORY = "cases"
_FILE = "cases.safetensors"

# Relative to a number, and to 1 or, if that is more, the largest one of its tensor. Wider than
# those of torch.testing, which compares two runs on one machine: another order of summation, on
# other vector units, may differ in the last digits.
TOLERANCES = {
    ScalarType.FLOAT16: (1e-2, 1e-2),
    ScalarType.BFLOAT16: (2e-2, 2e-2),
    ScalarType.FLOAT32: (1e-4, 1e-5),
    ScalarType.FLOAT64: (1e-7, 1e-9),
    ScalarType.COMPLEX64: (1e-4, 1e-5),
    ScalarType.COMPLEX128: (1e-7, 1e-9),
    ScalarType.FLOAT8_E4M3FN: (0.15, 0.1),
    ScalarType.FLOAT8_E5M2: (0.3, 0.1),
}

_OTHER_DEVICE_FACTOR = 20
"""How much wider the tolerances are where a program runs on another kind of device than the CPU."""


@dataclass(frozen=True, slots=True)
class AnsweredCase:
    """A call and what it must give.

    Attributes:
      method: of the program.
      inputs: the tensors of the call by name, on the CPU.
      outputs: the tensors of its result by name, on the CPU.
    """

    method: str
    inputs: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class RefusedCase:
    """A call that the contract must refuse: the dtype and shape of each of its tensors, by name."""

    method: str
    inputs: TensorInputs


Case = AnsweredCase | RefusedCase


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How far the results of an answered case were from what they must be, at most."""

    case: str
    absolute_error: float
    relative_error: float


def write_cases(directory: Path, cases: Sequence[Case]) -> pb.ProgramCases:
    """Writes the tensors of cases below `directory`/cases, and returns the cases' message."""
    message = pb.ProgramCases()
    tensors: dict[str, torch.Tensor] = {}
    for number, case in enumerate(cases):
        encoded = message.cases.add(method=case.method)
        if isinstance(case, RefusedCase):
            for name, (scalar_type, shape) in case.inputs.items():
                encoded.refused.inputs.add(name=name, dtype=scalar_type.name, shape=shape)
            encoded.refused.SetInParent()
            continue
        for kind, values, listed in (
            ("input", case.inputs, encoded.answered.inputs),
            ("output", case.outputs, encoded.answered.outputs),
        ):
            for name, tensor in values.items():
                key = f"{number}.{kind}.{name}"
                listed.add(name=name, tensor=key)
                tensors[key] = tensor.detach().cpu().contiguous().clone()
        encoded.answered.SetInParent()
    if tensors:
        (directory / CASES_DIRECTORY).mkdir(exist_ok=True)
        path = directory / CASES_DIRECTORY / _FILE
        save_tensors(tensors, path)
        message.tensors.file = _FILE
        message.tensors.size = path.stat().st_size
        message.tensors.sha256 = file_digest(path)
    return message


def read_cases(directory: Path, message: pb.ProgramCases) -> list[Case]:
    """Returns the cases of a program.

    Args:
      directory: of the program.
      message: its section of cases.

    Raises:
      CorruptProgramError: a file is missing or short, or a case is malformed.
      DigestMismatchError: the file has been altered.
    """
    shard = None
    if message.HasField("tensors"):
        shard = open_shard(checked_path(directory / CASES_DIRECTORY, message.tensors))

    def tensor(key: str) -> torch.Tensor:
        if shard is None:
            raise CorruptProgramError(f"{directory}: a case has tensors, and there is no file")
        try:
            found: torch.Tensor = shard.get_tensor(key)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise CorruptProgramError(f"{directory}: a case has no tensor '{key}'") from error
        return found

    cases: list[Case] = []
    for item in message.cases:
        match item.WhichOneof("kind"):
            case "answered":
                cases.append(
                    AnsweredCase(
                        item.method,
                        {value.name: tensor(value.tensor) for value in item.answered.inputs},
                        {value.name: tensor(value.tensor) for value in item.answered.outputs},
                    )
                )
            case "refused":
                shapes = {
                    value.name: (scalar_type_from_proto(value.dtype), tuple(value.shape))
                    for value in item.refused.inputs
                }
                cases.append(RefusedCase(item.method, shapes))
            case _:
                raise CorruptProgramError(f"{directory}: a case is of an unknown kind")
    return cases


def verify(program: Program) -> list[CaseResult]:
    """Runs a program's cases on the device that it is on, and returns how exact the answers were.

    The program's state is afterwards what it was when it was loaded.

    Raises:
      CaseFailedError: an answer is not what it must be, a call fails, or one that must be refused
        is not.
      CorruptProgramError, DigestMismatchError: the cases cannot be read.
    """
    results = []
    for number, case in enumerate(program.cases):
        name = f"case {number} of method '{case.method}'"
        if case.method not in program.methods:
            raise CorruptProgramError(f"{name}: there is no such method")
        if isinstance(case, RefusedCase):
            _require_refusal(program, case, name)
        else:
            try:
                results.append(_compare(program, case, name))
            finally:
                program.reset()
    return results


def _require_refusal(program: Program, case: RefusedCase, name: str) -> None:
    try:
        program.methods[case.method].contract.check(case.inputs)
    except ContractViolation:
        return
    raise CaseFailedError(f"{name} must be refused, and the contract accepts it")


_MAGNIFIED = (
    "if that is rounding, which is another on another machine, and which the model magnifies, "
    "export with an example for which it does so less, or with cases=0"
)


def _compare(program: Program, case: AnsweredCase, name: str) -> CaseResult:
    try:
        outputs = _answers(program, case)
    # Not only errors of ours and of torch: a graph may do anything with integers and lists too.
    except Exception as error:
        raise CaseFailedError(f"{name} fails: {type(error).__name__}: {error}") from error
    if outputs.keys() != case.outputs.keys():
        raise CaseFailedError(f"{name} gives the outputs {', '.join(outputs)}")
    absolute = relative = 0.0
    factor = 1 if program.device.type == "cpu" else _OTHER_DEVICE_FACTOR
    for key, expected in case.outputs.items():
        try:
            here = difference(outputs[key], expected, factor, f"{name}, output '{key}'")
        except CaseFailedError as error:
            raise CaseFailedError(f"{error}; {_MAGNIFIED}") from error
        absolute, relative = max(absolute, here[0]), max(relative, here[1])
    return CaseResult(name, absolute, relative)


def _answers(program: Program, case: AnsweredCase) -> dict[str, torch.Tensor]:
    """Returns what a case's call gives, by output, as dense tensors on the CPU."""
    method = program.methods[case.method]
    contract = method.contract
    contract.check(
        {key: (from_torch(value.dtype), value.shape) for key, value in case.inputs.items()}
    )
    with torch.inference_mode():
        results = method.run(case_inputs(case, method))
        outputs = [value.cpu().contiguous() for value in results]
    return dict(zip(contract.tensor_outputs, outputs, strict=True))


def case_inputs(case: AnsweredCase, method: Method) -> list[torch.Tensor]:
    """Returns the tensors of a case's call for `Method.run`, on the method's device.

    They are copies: a graph may change its inputs.
    """
    names = method.contract.tensor_inputs
    return [case.inputs[name].to(method.device, copy=True) for name in names]


def difference(
    actual: torch.Tensor, expected: torch.Tensor, factor: int, name: str
) -> tuple[float, float]:
    """Returns the largest absolute and relative difference of a result from what it must be.

    Args:
      actual: the result.
      expected: what it must be, within the tolerance for its dtype.
      factor: of the tolerance.
      name: what messages call it.

    Raises:
      CaseFailedError: they differ by more, or in dtype or shape.
    """
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        raise CaseFailedError(
            f"{name} is {actual.dtype}{list(actual.shape)}; it must be "
            f"{expected.dtype}{list(expected.shape)}"
        )
    rtol, atol = TOLERANCES.get(from_torch(expected.dtype), (0.0, 0.0))
    wide = torch.complex128 if expected.is_complex() else torch.float64
    if expected.dtype in (torch.int64, torch.uint64):
        wide = expected.dtype  # a float64 does not hold them all
    left, right = actual.to(wide), expected.to(wide)
    if wide is expected.dtype and not (wide.is_floating_point or wide.is_complex):
        if torch.equal(left, right):
            return 0.0, 0.0
        raise CaseFailedError(f"{name} is not what it must be")
    same = (left == right) | (left.isnan() & right.isnan())
    gap = torch.where(same, 0.0, (left - right).abs())
    if not gap.numel():
        return 0.0, 0.0
    # A small number may be what is left of large ones, with their rounding.
    magnitudes = right.abs()
    finite = right.isfinite()
    absolute = factor * atol * max(1.0, torch.where(finite, magnitudes, 0).max().item())
    # Of what is not finite nothing else is near.
    near = finite & (gap <= absolute + factor * rtol * magnitudes)
    if not bool((same | near).all()):
        raise CaseFailedError(
            f"{name} differs by up to {gap.max().item():.3g}; allowed: {absolute:.3g} and "
            f"{factor * rtol:.3g} of the value"
        )
    relative = torch.where(same, 0.0, gap / magnitudes.clamp(min=1e-12))
    return gap.max().item(), relative.max().item()
