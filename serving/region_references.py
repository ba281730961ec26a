"""What a request says of tensors that lie in shared memory: parameters beside their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import (
    FieldViolation,
    InvalidRequestError,
    UnsupportedError,
    quoted,
)
from slipway.serving.shared_memory import RegionReference
from slipway.serving.tensors import TensorHeader, size_problem

__all__ = ["check_reference_sizes", "read_reference"]

_REGION = "shared_memory_region"
_OFFSET = "shared_memory_offset"
_BYTE_SIZE = "shared_memory_byte_size"
_KINDS = {_REGION: "string_param", _BYTE_SIZE: "int64_param", _OFFSET: "int64_param"}


def read_reference(
    subject: str,
    role: str,
    name: str,
    parameters: Mapping[str, protocol.InferParameter],
    is_allowed: bool,
) -> RegionReference | None:
    """Returns where in shared memory a tensor lies, or None for one that is in the message.

    Args:
      subject: the model and version, for messages.
      role: "input" or "output".
      name: the tensor's.
      parameters: the tensor's.
      is_allowed: whether tensors may lie in shared memory.

    Raises:
      UnsupportedError: they may not.
      InvalidRequestError: a parameter is missing or of another type.
    """
    if not any(parameter.startswith("shared_memory_") for parameter in parameters):
        return None
    if not is_allowed:
        raise UnsupportedError(
            f"Client shared memory is disabled: {role} {quoted(name)} of {subject} can only be in "
            "the message, unless the server is started with --allow-client-shared-memory"
        )
    problems: list[FieldViolation] = []
    for parameter, kind in _KINDS.items():
        if parameter not in parameters:
            if parameter == _OFFSET:
                continue
            problem = f"{role} {quoted(name)} lies in shared memory and needs '{parameter}'"
        elif parameters[parameter].WhichOneof("parameter_choice") != kind:
            problem = (
                f"invalid value type for '{parameter}' parameter for {role} {quoted(name)}, "
                f"expected {kind}"
            )
        else:
            continue
        where = f"{role}s[{name}].parameters[{parameter}]"
        problems.append(FieldViolation(where, problem, "PARAMETER"))
    if problems:
        raise InvalidRequestError.of(subject, problems)
    offset = parameters[_OFFSET].int64_param if _OFFSET in parameters else 0
    return RegionReference(
        parameters[_REGION].string_param, offset, parameters[_BYTE_SIZE].int64_param
    )


def check_reference_sizes(
    subject: str, inputs: Sequence[TensorHeader], sources: Mapping[str, RegionReference | None]
) -> None:
    """Raises InvalidRequestError if an input has another size in shared memory than it takes.

    Args:
      subject: the model and version, for messages.
      inputs: found legal by the contract.
      sources: by the input's name; None for one that is in the message.
    """
    problems = []
    for header in inputs:
        source = sources[header.name]
        problem = None if source is None else size_problem(header, source.size)
        if problem is not None:
            where = f"inputs[{header.name}].parameters[{_BYTE_SIZE}]"
            problems.append(FieldViolation(where, problem, "CONTENTS"))
    if problems:
        raise InvalidRequestError.of(subject, problems)
