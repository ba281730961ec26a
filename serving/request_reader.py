"""Reads requests: from bytes to a model, checked shapes and tensors' contents.

Clients send the same header again and again: everything but the id and the tensors' elements. So
what follows from one, with the contract's verdict, is kept by the header's bytes, and the next
request that has them is checked by one look-up. Headers that are refused are not kept.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from slipway.program import ContractViolation
from slipway.program.words import counted
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
from slipway.serving.region_references import check_reference_sizes, read_reference
from slipway.serving.repository import Repository
from slipway.serving.shared_memory import RegionSlice, SharedMemoryRegions
from slipway.serving.tensors import check_contents, read_headers, read_typed_contents
from slipway.serving.wire import MAX_MESSAGE_SIZE, not_a_request, split_request

__all__ = ["DEFAULT_PRIORITY", "RequestReader"]

DEFAULT_PRIORITY = 8
"""The level of requests that name none, or 0; level 1 is the most urgent."""

_DIGEST_REQUESTED = "slipway_return_program_digest"

_MOST_UNKNOWN = 100
"""Inputs, or outputs, that a request may name beyond those of its model, to be told of each."""

_KEPT_PLANS = 1024
_KEPT_HEADER_SIZE = 4096


class RequestReader:
    """Reads requests for the models of a repository. For use by one thread at a time.

    Attributes:
      model: whose the request that was read last is; None if that was not found.
      identifier: the id of that request, as far as it was read.
    """

    def __init__(
        self,
        repository: Repository,
        shared_memory: SharedMemoryRegions | None = None,
        max_message_bytes: int = MAX_MESSAGE_SIZE,
    ) -> None:
        """Makes a reader.

        Args:
          repository: of the models.
          shared_memory: the regions that tensors may lie in; None for none at all.
          max_message_bytes: of a response.
        """
        self.model: Model | None = None
        self.identifier = b""
        self._repository = repository
        self._shared_memory = shared_memory
        self._max_message_bytes = max_message_bytes
        self._generation = repository.generation
        self._plans: dict[bytes, tuple[Plan, int]] = {}

    def read(self, message: bytes) -> InferenceRequest:
        """Returns the request that `message`, a serialised ModelInferRequest, is.

        Its tensors are views of `message`, or lie in shared memory.

        Raises:
          ServingError: it is no such message, or its model will not take it; the error says why.
        """
        self.model, self.identifier = None, b""
        header, identifier, raw = split_request(message)
        self.identifier = identifier
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
            model = kept[0].model
        else:
            kept = None
            try:
                request = protocol.ModelInferRequest.FromString(header)
            except DecodeError:
                raise not_a_request(message) from None
            model = self._repository.find(request.model_name, request.model_version, identifier)
        self.model = model
        if kept is not None:
            return self._request(kept[0], message, identifier, raw, [])
        plan = self._plan(model, request)
        typed = _typed_contents(plan, request, raw)
        result = self._request(plan, message, identifier, raw, typed)
        if not typed and len(header) <= _KEPT_HEADER_SIZE:
            if len(self._plans) >= _KEPT_PLANS:
                self._plans.clear()  # rare, and simpler than to find out which is used least
            self._plans[header] = plan, len(raw)
            if plan.is_routed:
                self._plans[b"%d:%b" % (model.version, header)] = plan, len(raw)
        return result

    def _plan(self, model: Model, request: protocol.ModelInferRequest) -> Plan:
        _check_counts(model, request)
        headers = read_headers(model.subject, request)
        sources = {
            item.name: read_reference(
                model.subject, "input", item.name, item.parameters, self._shared_memory is not None
            )
            for item in request.inputs
        }
        outputs = _requested_outputs(model, request)
        destinations = {}
        for index, output in zip(outputs, request.outputs, strict=False):
            reference = read_reference(
                model.subject,
                "output",
                output.name,
                output.parameters,
                self._shared_memory is not None,
            )
            if reference is not None:
                destinations[index] = reference
        wants_digest, priority, timeout = _parameters(model, request)
        try:
            binding = model.contract.check(
                {name: header.signature for name, header in headers.items()}
            )
        except ContractViolation as error:
            raise ContractError.from_violation(model.subject, error) from None
        inputs = [headers[name] for name in model.contract.tensor_inputs]
        check_reference_sizes(model.subject, inputs, sources)
        raw_names = [item.name for item in request.inputs if sources[item.name] is None]
        rows, group = model.batch_of(binding)
        return Plan(
            model=model,
            inputs=tuple(inputs),
            positions=tuple(
                -1 if sources[header.name] else raw_names.index(header.name) for header in inputs
            ),
            sources=tuple(sources[header.name] for header in inputs)
            if any(sources.values())
            else (),
            destinations=destinations,
            outputs=tuple(outputs),
            wants_digest=wants_digest,
            priority=priority,
            timeout=timeout,
            rows=rows,
            row_size=sum(header.size for header in inputs) // max(rows, 1),
            group=group,
            binding=binding,
            is_routed=not request.model_version and self._repository.is_split(request.model_name),
            max_message_bytes=self._max_message_bytes,
        )

    def _request(
        self,
        plan: Plan,
        message: bytes,
        identifier: bytes,
        raw: list[memoryview],
        typed: list[memoryview],
    ) -> InferenceRequest:
        if not plan.sources and not plan.destinations:
            contents = typed or [raw[position] for position in plan.positions]
            if not typed:
                check_contents(plan.model.subject, plan.inputs, contents, plan.positions)
            return InferenceRequest(plan, identifier, contents, len(message))
        return self._request_in_regions(plan, message, identifier, raw, typed)

    def _request_in_regions(
        self,
        plan: Plan,
        message: bytes,
        identifier: bytes,
        raw: list[memoryview],
        typed: list[memoryview],
    ) -> InferenceRequest:
        regions = self._shared_memory
        assert regions is not None
        sources = plan.sources or (None,) * len(plan.inputs)
        sent = [index for index, source in enumerate(sources) if source is None]
        given = typed or [raw[plan.positions[index]] for index in sent]
        if not typed:
            headers = [plan.inputs[index] for index in sent]
            positions = [plan.positions[index] for index in sent]
            check_contents(plan.model.subject, headers, given, positions)
        remaining = iter(given)
        contents: list[memoryview | RegionSlice] = [
            next(remaining) if source is None else regions.locate(source) for source in sources
        ]
        destinations = {
            index: regions.locate(reference) for index, reference in plan.destinations.items()
        }
        size = len(message) + sum(source.size for source in sources if source is not None)
        return InferenceRequest(plan, identifier, contents, size, destinations)


def _check_counts(model: Model, request: protocol.ModelInferRequest) -> None:
    """Raises InvalidRequestError for so many inputs or outputs that nobody wants to hear of each.

    To look at thousands takes the thread that receives a tenth of a second.
    """
    problems = []
    for role, given, known in (
        ("INPUT", request.inputs, model.signature.inputs),
        ("OUTPUT", request.outputs, model.signature.outputs),
    ):
        if len(given) > len(known) + _MOST_UNKNOWN:
            what = f"{role.lower()}s"
            problem = f"it has {len(given)} {what}, and the model has {len(known)}"
            problems.append(FieldViolation(what, problem, f"UNKNOWN_{role}"))
    if problems:
        raise InvalidRequestError.of(model.subject, problems)


def _typed_contents(
    plan: Plan, request: protocol.ModelInferRequest, raw: list[memoryview]
) -> list[memoryview]:
    """Returns the elements of inputs that are sent as numbers; of none if they are sent raw."""
    subject = plan.model.subject
    sent = [
        header
        for header, position in zip(plan.inputs, plan.positions, strict=True)
        if position >= 0
    ]
    if raw and len(raw) != len(sent):
        problem = (
            f"raw_input_contents has {counted(len(raw), 'entry', 'entries')} for "
            f"{counted(len(sent), 'input')}"
            f"{'' if len(sent) == len(plan.inputs) else ' outside of shared memory'}; "
            "it must have one for each input, in the order of the inputs"
        )
        violation = FieldViolation("raw_input_contents", problem, "RAW_CONTENTS")
        raise InvalidRequestError.of(subject, [violation])
    in_regions = {header.name for header in plan.inputs} - {header.name for header in sent}
    mixed = []
    for name in (item.name for item in request.inputs if item.HasField("contents")):
        if name in in_regions:
            problem = (
                f"for {quoted(name)}, whose elements are in shared memory: send one of the two"
            )
        elif raw:
            problem = (
                f"when using raw_input_contents for {quoted(name)}: send every input raw, or every "
                "input typed"
            )
        else:
            continue
        text = f"contents field must not be specified {problem}"
        mixed.append(FieldViolation(f"inputs[{name}].contents", text, "CONTENTS"))
    if mixed:
        raise InvalidRequestError.of(subject, mixed)
    return [] if raw else read_typed_contents(subject, request, sent)


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
