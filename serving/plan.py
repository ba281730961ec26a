"""What a request's header implies: the model, the checked shapes, and what to answer with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.errors import ResourceExhaustedError
from slipway.serving.tensors import TensorHeader
from slipway.serving.wire import join_response

if TYPE_CHECKING:
    from slipway.serving.model import Model

__all__ = ["MAX_MESSAGE_SIZE", "InferenceRequest", "Plan"]

MAX_MESSAGE_SIZE = 2**31 - 1
"""Bytes of a message, at most: protobuf's limit."""

_DIGEST = "slipway_program_digest"

_KEPT_RESPONSE_HEADERS = 64


@dataclass(slots=True)
class Plan:
    """What follows from a request's header.

    Attributes:
      model: what runs.
      inputs: the header of each tensor input, in the contract's order.
      positions: the index in the request of each of `inputs`.
      outputs: the indices of the outputs to answer with, in the order to answer them in.
      wants_digest: whether the response names the program's digest.
      priority: 1 is the most urgent.
      timeout: how long the request may wait to be run, in seconds; 0 for as long as it takes.
      rows: the size of the batch dimension; 1 for a method that is not batched.
      group: what requests must agree in to share a batch: the values of the other symbols; None for
        a request that runs alone.
      binding: the values of all symbols.
      is_routed: whether requests with the same header may go to other versions, by their id.
    """

    model: Model
    inputs: tuple[TensorHeader, ...]
    positions: tuple[int, ...]
    outputs: tuple[int, ...]
    wants_digest: bool
    priority: int
    timeout: float
    rows: int
    group: tuple[int, ...] | None
    binding: tuple[int, ...]
    is_routed: bool = False
    _response_headers: dict[tuple[tuple[int, ...], ...], bytes] = field(default_factory=dict)

    def response(
        self, identifier: bytes, shapes: Sequence[tuple[int, ...]], contents: Sequence[memoryview]
    ) -> bytes:
        """Returns the serialised response.

        Args:
          identifier: the request's id.
          shapes: of each of the model's outputs.
          contents: the elements of each of them, row-major.

        Raises:
          ResourceExhaustedError: it would be larger than the protocol allows.
        """
        size = sum(contents[index].nbytes for index in self.outputs)
        # A mebibyte is more than names, shapes and lengths take.
        if size + 2**20 > MAX_MESSAGE_SIZE:
            raise ResourceExhaustedError(
                f"{self.model.subject}: Response has byte size {size} which exceeds gRPC's byte "
                f"size limit {MAX_MESSAGE_SIZE}; send a smaller batch or ask for fewer outputs"
            )
        key = tuple(shapes)
        header = self._response_headers.get(key)
        if header is None:
            header = self._response_header(key)
            if len(self._response_headers) >= _KEPT_RESPONSE_HEADERS:
                self._response_headers.clear()  # sizes depend on data, and no two are alike
            self._response_headers[key] = header
        return join_response(header, identifier, [contents[index] for index in self.outputs])

    def _response_header(self, shapes: tuple[tuple[int, ...], ...]) -> bytes:
        model = self.model
        response = protocol.ModelInferResponse(
            model_name=model.name, model_version=str(model.version)
        )
        for index in self.outputs:
            signature = model.signature.outputs[index]
            response.outputs.add(
                name=signature.name, datatype=signature.datatype.name, shape=shapes[index]
            )
        if self.wants_digest:
            response.parameters[_DIGEST].string_param = model.digest
        return response.SerializeToString()


@dataclass(slots=True)
class InferenceRequest:
    """A request that satisfies its model's contract.

    Attributes:
      plan: what its header implies.
      identifier: its id, for the response.
      contents: the elements of each of the plan's inputs, row-major.
      size: how many bytes it holds.
    """

    plan: Plan
    identifier: bytes
    contents: Sequence[memoryview]
    size: int
