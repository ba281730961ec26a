"""ModelInfer: from a request to a response."""

from __future__ import annotations

from collections.abc import Callable

import torch

from slipway.program import ContractViolation
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import (
    CancelledError,
    ContractError,
    FieldViolation,
    InternalError,
    InvalidRequestError,
    ResourceExhaustedError,
    UnsupportedError,
    quoted,
)
from slipway.serving.repository import Model
from slipway.serving.tensors import decode_inputs, encode_tensor, read_headers

__all__ = ["MAX_MESSAGE_SIZE", "infer"]

MAX_MESSAGE_SIZE = 2**31 - 1
"""Bytes of a message, at most: protobuf's limit."""

_DIGEST_REQUESTED = "slipway_return_program_digest"
_DIGEST = "slipway_program_digest"


def infer(
    model: Model, request: protocol.ModelInferRequest, is_wanted: Callable[[], bool]
) -> protocol.ModelInferResponse:
    """Returns the response of `model` to `request`.

    Args:
      model: what runs.
      request: named the model, and may have come from anyone.
      is_wanted: whether the client still waits.

    Raises:
      ServingError: the request gets no result, and why.
    """
    headers = read_headers(model.subject, request)
    outputs = _requested_outputs(model, request)
    wants_digest = _wants_digest(model, request)
    try:
        model.contract.check({name: header.signature for name, header in headers.items()})
    except ContractViolation as error:
        raise ContractError.from_violation(model.subject, error) from None
    if not is_wanted():
        raise CancelledError(f"{model.subject}: the client has gone")
    tensors = decode_inputs(model.subject, request, headers, model.contract.tensor_inputs)
    results = model.instance.run(tensors, is_wanted)
    response = _respond(model, outputs, results)
    response.id = request.id
    if wants_digest:
        response.parameters[_DIGEST].string_param = model.digest
    return response


def _requested_outputs(model: Model, request: protocol.ModelInferRequest) -> list[int]:
    """Returns the indices of the outputs to answer with, in the order to answer them in."""
    names = [output.name for output in model.signature.outputs]
    if not request.outputs:
        return list(range(len(names)))
    chosen: list[int] = []
    problems: list[FieldViolation] = []
    for item in request.outputs:
        where = f"outputs[{item.name}]"
        if "classification" in item.parameters:
            raise UnsupportedError(
                f"classification is not supported: output {quoted(item.name)} of {model.subject} "
                "is returned as it is"
            )
        if any(parameter.startswith("shared_memory_") for parameter in item.parameters):
            raise UnsupportedError(
                f"Client shared memory is disabled: output {quoted(item.name)} of {model.subject} "
                "can only be returned in the response"
            )
        if item.name not in names:
            problem = (
                f"unexpected inference output {quoted(item.name)}; "
                f"the outputs are {', '.join(map(repr, names))}"
            )
            problems.append(FieldViolation(where, problem, "UNKNOWN_OUTPUT"))
        elif names.index(item.name) in chosen:
            problem = f"output {quoted(item.name)} already exists in request"
            problems.append(FieldViolation(where, problem, "DUPLICATE_OUTPUT"))
        else:
            chosen.append(names.index(item.name))
    if problems:
        raise InvalidRequestError.of(model.subject, problems)
    return chosen


def _wants_digest(model: Model, request: protocol.ModelInferRequest) -> bool:
    problems = []
    for name in request.parameters:
        if not name.startswith("slipway_"):
            continue  # options of other servers are hints, and the protocol lets them be ignored
        if name != _DIGEST_REQUESTED:
            problem = (
                f"unknown parameter {quoted(name)}; of those that start with slipway_ there is "
                f"only {_DIGEST_REQUESTED}"
            )
        elif request.parameters[name].WhichOneof("parameter_choice") != "bool_param":
            problem = f"invalid value type for {quoted(name)} parameter, expected bool_param"
        else:
            continue
        problems.append(FieldViolation(f"parameters[{name}]", problem, "PARAMETER"))
    if problems:
        raise InvalidRequestError.of(model.subject, problems)
    # Indexing a map of messages would add the key.
    return _DIGEST_REQUESTED in request.parameters and (
        request.parameters[_DIGEST_REQUESTED].bool_param
    )


def _respond(
    model: Model, outputs: list[int], results: list[torch.Tensor]
) -> protocol.ModelInferResponse:
    response = protocol.ModelInferResponse(model_name=model.name, model_version=str(model.version))
    if len(results) != len(model.signature.outputs):
        raise InternalError(
            f"{model.subject} gave {len(results)} outputs instead of {len(model.signature.outputs)}"
        )
    size = sum(results[index].nbytes for index in outputs)
    # A mebibyte is more than names, shapes and lengths take.
    if size + 2**20 > MAX_MESSAGE_SIZE:
        raise ResourceExhaustedError(
            f"{model.subject}: Response has byte size {size} which exceeds gRPC's byte size limit "
            f"{MAX_MESSAGE_SIZE}; send a smaller batch or ask for fewer outputs"
        )
    for index in outputs:
        signature, tensor = model.signature.outputs[index], results[index]
        response.outputs.add(
            name=signature.name, datatype=signature.datatype.name, shape=tensor.shape
        )
        # Always raw, one entry for each output: clients index these without looking.
        response.raw_output_contents.append(encode_tensor(tensor))
    return response
