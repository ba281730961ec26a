"""What clients are told of a model, derived from its contract: ModelMetadata and ModelConfig."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from slipway.program import Contract
from slipway.program.compiled import Execution
from slipway.program.contract import TensorSpec
from slipway.program.expressions import SymbolReference
from slipway.proto import open_inference_pb2 as protocol
from slipway.serving.datatypes import Datatype, datatype_of

__all__ = ["PLATFORM", "Signature", "SignatureError", "TensorSignature"]

PLATFORM = "slipway_program"
"""What ModelMetadata calls the thing that runs the model."""

_MAX_INT32 = 2**31 - 1


class SignatureError(ValueError):
    """The protocol cannot carry one of the method's tensors."""


@dataclass(frozen=True, slots=True)
class TensorSignature:
    """An input or output; `shape` has -1 for a dimension that is no constant."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a method.

    Attributes:
      inputs: the tensor inputs, in the contract's order.
      outputs: the tensor outputs, in the contract's order.
      max_batch_size: the largest batch; 0 for a method that does not batch as Triton means it, with
        dimension 0 of every tensor as the batch.
      is_batched: whether requests of several clients can share a batch.
    """

    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    max_batch_size: int
    is_batched: bool

    @classmethod
    def of(cls, contract: Contract) -> Signature:
        """Returns the signature of the method that `contract` is of.

        Raises:
          SignatureError: a tensor's dtype is none of the protocol's.
        """
        return cls(
            _tensors("input", contract.tensor_inputs),
            _tensors("output", contract.tensor_outputs),
            _max_batch_size(contract),
            contract.batching is not None,
        )

    def metadata(self, name: str, versions: Sequence[int]) -> protocol.ModelMetadataResponse:
        """Returns the metadata of a model called `name` of which `versions` are ready."""
        response = protocol.ModelMetadataResponse(
            name=name, versions=map(str, versions), platform=PLATFORM
        )
        for tensors, listed in ((self.inputs, response.inputs), (self.outputs, response.outputs)):
            for tensor in tensors:
                listed.add(name=tensor.name, datatype=tensor.datatype.name, shape=tensor.shape)
        return response

    def config(
        self,
        name: str,
        device: torch.device,
        digest: str,
        execution: Execution,
        instances: int = 1,
    ) -> protocol.ModelConfig:
        """Returns the configuration of a model called `name`, as Triton's clients read it.

        Args:
          name: the model's name.
          device: where it runs.
          digest: the program's identity.
          execution: whether compiled code runs it, and why.
          instances: how many batches of it run at the same time.
        """
        skipped = 1 if self.max_batch_size else 0
        config = protocol.ModelConfig(
            name=name,
            platform=PLATFORM,
            backend="slipway",
            max_batch_size=self.max_batch_size,
            version_policy=protocol.ModelVersionPolicy(all=protocol.ModelVersionPolicy.All()),
        )
        if self.is_batched:
            config.dynamic_batching.SetInParent()
        for tensor in self.inputs:
            config.input.add(
                name=tensor.name, data_type=tensor.datatype.config, dims=tensor.shape[skipped:]
            )
        for tensor in self.outputs:
            config.output.add(
                name=tensor.name, data_type=tensor.datatype.config, dims=tensor.shape[skipped:]
            )
        group = config.instance_group.add(name=f"{name}_0", count=instances)
        if device.type == "cuda":
            group.kind = protocol.ModelInstanceGroup.KIND_GPU
            group.gpus.append(device.index or 0)
        else:
            group.kind = protocol.ModelInstanceGroup.KIND_CPU
        config.parameters["slipway_program_digest"].string_value = digest
        config.parameters["slipway_execution"].string_value = execution.target or "graph"
        config.parameters["slipway_execution_reason"].string_value = execution.reason
        return config


def _tensors(role: str, specs: Mapping[str, TensorSpec]) -> tuple[TensorSignature, ...]:
    tensors = []
    for name, spec in specs.items():
        datatype = datatype_of(spec.dtype)
        if datatype is None:
            raise SignatureError(
                f"{role} '{name}' is {spec.dtype.value}, which the inference protocol cannot carry"
            )
        sizes = (size.constant_value() for size in spec.shape)
        shape = tuple(-1 if size is None else size for size in sizes)
        tensors.append(TensorSignature(name, datatype, shape))
    return tuple(tensors)


def _max_batch_size(contract: Contract) -> int:
    if contract.batch_symbol is None:
        return 0
    maximum = contract.symbols[contract.batch_symbol].maximum
    specs = [*contract.tensor_inputs.values(), *contract.tensor_outputs.values()]
    if maximum is None or not all(_leads(spec, contract.batch_symbol) for spec in specs):
        return 0
    return min(maximum, _MAX_INT32)


def _leads(spec: TensorSpec, symbol: int) -> bool:
    """Returns whether dimension 0 of `spec` is `symbol` alone."""
    if not spec.shape:
        return False
    first = spec.shape[0]
    return isinstance(first, SymbolReference) and first.index == symbol
