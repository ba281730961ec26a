"""Reads requests: from bytes to a model, checked shapes and tensors' contents.

Clients send the same header again and again: everything but the id and the tensors' elements. So
what follows from one, with the contract's verdict, is kept by the header's bytes, and the next
request that has them is checked by one look-up. Headers that are refused are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from slipway.program import ContractViolation
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import (
    ContractError,
    FieldViolation,
    InvalidRequestError,
    UnsupportedError,
    quoted,
)
from slipway.serving.model import Model
from slipway.serving.plan import InferenceRequest, Plan
from slipway.serving.repository import Repository
from slipway.serving.tensors import check_contents, read_headers, read_typed_contents
from slipway.serving.wire import not_a_request, split_request

__all__ = ["DEFAULT_PRIORITY", "RequestReader"]

DEFAULT_PRIORITY = 8
"""The level of requests that name none, or 0; level 1 is the most urgent."""

_DIGEST_REQUESTED = "slipway_return_program_digest"

_KEPT_PLANS = 1024
_KEPT_HEADER_SIZE = 4096


class RequestReader:
    """Reads requests for the models of a repository. For use by one thread at a time."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._generation = repository.generation
        self._plans: dict[bytes, tuple[Plan, int]] = {}

    def read(self, message: bytes) -> InferenceRequest:
        """Returns the request that `message`, a serialised ModelInferRequest, is.

        Its tensors are views of `message`.

        Raises:
          ServingError: it is no such message, or its model will not take it; the error says why.
        """
        header, identifier, raw = split_request(message)
        if not identifier.isascii():
            try:
                identifier.decode()
            except UnicodeDecodeError:
                raise not_a_request(message) from None
        if self._generation != self._repository.generation:
            # A name may mean another version now.
            self._generation = self._repository.generation
            self._plans.clear()
        kept = self._plans.get(header)
        if kept is not None and kept[0].is_routed:
            # The same header goes to several versions, by the id.
            name = kept[0].model.name
            model = self._repository.find(name, "", identifier)
            kept = self._plans.get(b"%d:%b" % (model.version, header))
        if kept is not None and kept[1] == len(raw):
            plan = kept[0]
            contents: Sequence[memoryview] = [raw[position] for position in plan.positions]
            check_contents(plan.model.subject, plan.inputs, contents)
            return InferenceRequest(plan, identifier, contents, len(message))
        try:
            request = protocol.ModelInferRequest.FromString(header)
        except DecodeError:
            raise not_a_request(message) from None
        plan = self._plan(request, identifier)
        contents = self._contents(plan, request, raw)
        if raw and len(header) <= _KEPT_HEADER_SIZE:
            if len(self._plans) >= _KEPT_PLANS:
                self._plans.clear()  # rare, and simpler than to find out which is used least
            self._plans[header] = plan, len(raw)
            if plan.is_routed:
                self._plans[b"%d:%b" % (plan.model.version, header)] = plan, len(raw)
        return InferenceRequest(plan, identifier, contents, len(message))

    def _plan(self, request: protocol.ModelInferRequest, identifier: bytes) -> Plan:
        name, version = request.model_name, request.model_version
        model = self._repository.find(name, version, identifier)
        headers = read_headers(model.subject, request)
        outputs = _requested_outputs(model, request)
        wants_digest, priority, timeout = _parameters(model, request)
        try:
            binding = model.contract.check(
                {name: header.signature for name, header in headers.items()}
            )
        except ContractViolation as error:
            raise ContractError.from_violation(model.subject, error) from None
        inputs = [headers[name] for name in model.contract.tensor_inputs]
        rows, group = model.batch_of(binding)
        return Plan(
            model=model,
            inputs=tuple(inputs),
            positions=tuple(header.position for header in inputs),
            outputs=tuple(outputs),
            wants_digest=wants_digest,
            priority=priority,
            timeout=timeout,
            rows=rows,
            group=group,
            binding=binding,
            is_routed=not version and self._repository.is_split(name),
        )

    def _contents(
        self, plan: Plan, request: protocol.ModelInferRequest, raw: list[memoryview]
    ) -> Sequence[memoryview]:
        subject = plan.model.subject
        if not raw:
            return read_typed_contents(subject, request, plan.inputs)
        if len(raw) != len(request.inputs):
            problem = (
                f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs; "
                "it must have one for each input, in the order of the inputs"
            )
            violation = FieldViolation("raw_input_contents", problem, "RAW_CONTENTS")
            raise InvalidRequestError.of(subject, [violation])
        mixed = [item.name for item in request.inputs if item.HasField("contents")]
        if mixed:
            raise InvalidRequestError.of(
                subject,
                [
                    FieldViolation(
                        f"inputs[{name}].contents",
                        "contents field must not be specified when using raw_input_contents for "
                        f"{quoted(name)}: send every input raw, or every input typed",
                        "CONTENTS",
                    )
                    for name in mixed
                ],
            )
        contents = [raw[position] for position in plan.positions]
        check_contents(subject, plan.inputs, contents)
        return contents


def _requested_outputs(model: Model, request: protocol.ModelInferRequest) -> list[int]:
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


def _parameters(model: Model, request: protocol.ModelInferRequest) -> tuple[bool, int, float]:
    """Returns whether the digest is wanted, the priority, and the timeout in seconds."""
    wants_digest, priority, timeout = False, DEFAULT_PRIORITY, 0.0
    problems: list[FieldViolation] = []

    def refuse(name: str, problem: str) -> None:
        problems.append(FieldViolation(f"parameters[{name}]", problem, "PARAMETER"))

    for name, parameter in request.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if name == _DIGEST_REQUESTED:
            if kind == "bool_param":
                wants_digest = parameter.bool_param
            else:
                refuse(
                    name, f"invalid value type for {quoted(name)} parameter, expected bool_param"
                )
        elif name.startswith("slipway_"):
            refuse(
                name,
                f"unknown parameter {quoted(name)}; of those that start with slipway_ there is "
                f"only {_DIGEST_REQUESTED}",
            )
        elif name == "priority":
            if kind not in ("int64_param", "uint64_param"):
                refuse(
                    name,
                    "invalid value type for 'priority' parameter, expected int64_param or "
                    "uint64_param.",
                )
            elif parameter.int64_param < 0:
                refuse(name, f"'priority' is {parameter.int64_param}; it must not be negative")
            else:
                priority = parameter.int64_param or parameter.uint64_param or DEFAULT_PRIORITY
        elif name == "timeout":
            if kind not in ("int64_param", "uint64_param"):
                refuse(name, "invalid value type for 'timeout' parameter, expected int64_param.")
            elif parameter.int64_param < 0:
                refuse(name, f"'timeout' is {parameter.int64_param}; it must not be negative")
            else:
                timeout = (parameter.int64_param or parameter.uint64_param) / 1e6
        # Options of other servers are hints, and the protocol lets them be ignored.
    if problems:
        raise InvalidRequestError.of(model.subject, problems)
    return wants_digest, priority, timeout
