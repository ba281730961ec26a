"""Turns torch's exported program into the parts of ours: a graph and its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.flat_call import MODEL_PREFIX
from slipway.export.mutation import mutated_inputs
from slipway.export.sources import user_line_of_node
from slipway.program.contract import Contract
from slipway.program.graph_codec import GraphEncodingError, OperatorTable, graph_to_proto
from slipway.program.weights import storage_problem
from slipway.proto import program_pb2 as pb

__all__ = ["encode"]


def encode(
    exported: ExportedProgram, contract: Contract
) -> tuple[pb.ProgramGraph, dict[str, torch.Tensor]]:
    """Returns the graph's message and the weights that it uses, sorted by name.

    Args:
      exported: its inputs are the weights and the tensors of the contract's inputs.
      contract: of the graph.

    Raises:
      ExportError: the graph has something in it that a program cannot hold.
    """
    signature = exported.graph_signature
    graph = exported.graph_module.graph
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    owners: dict[str, str] = {}
    canonical: dict[tuple[object, ...], str] = {}
    weights: dict[str, torch.Tensor] = {}
    inputs: dict[str, pb.GraphInput] = {}
    tensors = (place for place, spec in enumerate(contract.inputs) if spec.tensor is not None)
    for spec in signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            inputs[spec.arg.name] = pb.GraphInput(input=next(tensors))
        elif placeholders[spec.arg.name].users:
            assert spec.target is not None
            tensor = _weight(exported, spec.target)
            own_name = spec.target.removeprefix(MODEL_PREFIX)
            name = canonical.setdefault(_storage_key(tensor), own_name)
            weights[name] = tensor
            owners[spec.arg.name] = name
    ordered = {name: weights[name] for name in sorted(weights)}
    index = {name: position for position, name in enumerate(ordered)}
    for placeholder, name in owners.items():
        inputs[placeholder] = pb.GraphInput(weight=index[name])
    try:
        operators = OperatorTable.of_graphs([graph])
        message = graph_to_proto(graph, inputs, _results(exported), operators)
        message.mutated_inputs.extend(mutated_inputs(graph, inputs))
    except GraphEncodingError as error:
        raise ExportError(
            ExportErrorKind.UNSUPPORTED_OPERATOR,
            str(error),
            "use operators of torch (aten) on tensors and sizes",
            user_line_of_node(error.node),
        ) from error
    for place in message.mutated_inputs:
        if message.inputs[place].WhichOneof("kind") == "weight":
            # The model goes on to change its own; the program starts from what it was.
            name = list(ordered)[message.inputs[place].weight]
            ordered[name] = ordered[name].clone()
    return pb.ProgramGraph(operators=operators.to_proto(), methods=[message]), ordered


def _weight(exported: ExportedProgram, target: str) -> torch.Tensor:
    value = exported.state_dict.get(target, exported.constants.get(target))
    if not isinstance(value, torch.Tensor):
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the model holds '{target}', a {type(value).__name__}",
            "keep tensors, as parameters or buffers, and plain values only",
        )
    if problem := storage_problem(value):
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the model's '{target}' is {problem}",
            "convert it in the model's constructor",
        )
    return value.detach()


def _storage_key(tensor: torch.Tensor) -> tuple[object, ...]:
    """Returns what two names for the same weight have in common."""
    return (
        tensor.untyped_storage().data_ptr() or id(tensor),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
    )


def _results(exported: ExportedProgram) -> list[Any]:
    (output,) = (node for node in exported.graph.nodes if node.op == "output")
    results = []
    for spec, value in zip(exported.graph_signature.output_specs, output.args[0], strict=True):
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise ExportError(
                ExportErrorKind.INVALID_SPEC,
                f"the model changes '{spec.target}' when it is called",
                "return what is computed instead of storing it in a buffer or an argument",
            )
        if isinstance(value, torch.fx.Node):
            results.append(value)
    return results
