"""What a request's header implies: the model, the checked shapes, and what to answer with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import FieldViolation, InvalidRequestError, ResourceExhaustedError
from slipway.serving.shared_memory import RegionReference, RegionSlice
from slipway.serving.tensors import TensorHeader, elements_problem
from slipway.serving.wire import MAX_MESSAGE_SIZE, join_response

if TYPE_CHECKING:
    from slipway.serving.model import Model

__all__ = ["InferenceRequest", "Plan"]

_DIGEST = "slipway_program_digest"

_KEPT_RESPONSE_HEADERS = 64


@dataclass(slots=True)
class Plan:
    """What follows from a request's header.

    Attributes:
      model: what runs.
      inputs: the header of each tensor input, in the contract's order.
      positions: for each of `inputs`, which of the raw contents it has; -1 if it has none.
      sources: for each of `inputs`, where in shared memory it lies; None for one in the request.
        Empty if all are.
      destinations: of the outputs that go to shared memory, by the output's index.
      outputs: the indices of the outputs to answer with, in the order to answer them in.
      wants_digest: whether the response names the program's digest.
      priority: 1 is the most urgent.
      timeout: how long the request may wait to be run, in seconds; 0 for as long as it takes.
      rows: the size of the batch dimension; 1 for a method that is not batched.
      row_size: of one row of all inputs, in bytes.
      group: what requests must agree in to share a batch; None for a request that runs alone. Those
        that agree in it differ at most in a size that can be padded, and so in their `row_size`.
      binding: the values of all symbols.
      is_routed: whether requests with the same header may go to other versions, by their id.
      max_message_bytes: of a response.
    """

    model: Model
    inputs: tuple[TensorHeader, ...]
    positions: tuple[int, ...]
    sources: tuple[RegionReference | None, ...]
    destinations: Mapping[int, RegionReference]
    outputs: tuple[int, ...]
    wants_digest: bool
    priority: int
    timeout: float
    rows: int
    row_size: int
    group: tuple[int, ...] | None
    binding: tuple[int, ...]
    is_routed: bool = False
    max_message_bytes: int = MAX_MESSAGE_SIZE
    _response_headers: dict[tuple[tuple[int, ...], ...], bytes] = field(default_factory=dict)

    def response(
        self, identifier: bytes, shapes: Sequence[tuple[int, ...]], contents: Sequence[memoryview]
    ) -> bytes:
        """Returns the serialised response.

        Args:
          identifier: the request's id.
          shapes: of each of the model's outputs.
          contents: the elements of each of them, row-major; nothing of those in shared memory.

        Raises:
          ResourceExhaustedError: it would be larger than the protocol allows.
        """
        size = sum(contents[index].nbytes for index in self.outputs)
        if size > self.max_message_bytes:
            raise self._too_large(size)
        key = tuple(shapes)
        header = self._response_headers.get(key)
        if header is None:
            header = self._response_header(key)
            if len(self._response_headers) >= _KEPT_RESPONSE_HEADERS:
                self._response_headers.clear()  # sizes depend on data, and no two are alike
            self._response_headers[key] = header
        message = join_response(header, identifier, [contents[index] for index in self.outputs])
        if len(message) > self.max_message_bytes:
            raise self._too_large(len(message))
        return message

    def _too_large(self, size: int) -> ResourceExhaustedError:
        return ResourceExhaustedError(
            f"{self.model.subject}: Response has byte size {size} which exceeds gRPC's byte "
            f"size limit {self.max_message_bytes}; send a smaller batch or ask for fewer outputs"
        )

    def _response_header(self, shapes: tuple[tuple[int, ...], ...]) -> bytes:
        model = self.model
        response = protocol.ModelInferResponse(
            model_name=model.name, model_version=str(model.version)
        )
        for index in self.outputs:
            signature = model.signature.outputs[index]
            output = response.outputs.add(
                name=signature.name, datatype=signature.datatype.name, shape=shapes[index]
            )
            if index in self.destinations:
                destination = self.destinations[index]
                size = math.prod(shapes[index]) * signature.datatype.item_size
                output.parameters["shared_memory_region"].string_param = destination.region
                output.parameters["shared_memory_offset"].int64_param = destination.offset
                output.parameters["shared_memory_byte_size"].int64_param = size
        if self.wants_digest:
            response.parameters[_DIGEST].string_param = model.digest
        return response.SerializeToString()


@dataclass(slots=True)
class InferenceRequest:
    """A request that satisfies its model's contract.

    Attributes:
      plan: what its header implies.
      identifier: its id, for the response.
      contents: the elements of each of the plan's inputs, row-major, or where they lie.
      size: how many bytes it holds, or will when it is run.
      destinations: where outputs go that are not to be in the response, by the output's index.
    """

    plan: Plan
    identifier: bytes
    contents: Sequence[memoryview | RegionSlice]
    size: int
    destinations: Mapping[int, RegionSlice] = field(default_factory=dict)

    def read_contents(self) -> Sequence[memoryview]:
        """Returns the elements of each of the plan's inputs.

        Raises:
          InvalidRequestError: they cannot be read from shared memory, or are no such elements.
        """
        if not self.plan.sources:
            return self.contents  # type: ignore[return-value]
        read: list[memoryview] = []
        for header, content in zip(self.plan.inputs, self.contents, strict=True):
            if isinstance(content, RegionSlice):
                content = content.read()
                problem = elements_problem(header, content)
                if problem is not None:
                    violation = FieldViolation(f"inputs[{header.name}]", problem, "CONTENTS")
                    raise InvalidRequestError.of(self.plan.model.subject, [violation])
            read.append(content)
        return read

    def response(self, shapes: Sequence[tuple[int, ...]], contents: Sequence[memoryview]) -> bytes:
        """Returns the serialised response, once what goes to shared memory is there.

        Args:
          shapes: of each of the model's outputs.
          contents: the elements of each of them, row-major.

        Raises:
          InvalidRequestError: an output does not fit where it shall go.
          ResourceExhaustedError: the response would be larger than the protocol allows.
        """
        if self.destinations:
            contents = list(contents)
            for index, destination in self.destinations.items():
                destination.write(contents[index])
                contents[index] = memoryview(b"")
        return self.plan.response(self.identifier, shapes, contents)
