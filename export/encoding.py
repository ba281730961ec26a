"""Turns torch's exported program into the parts of ours: a graph and its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.sources import user_line_of_node
from slipway.program.graph_codec import GraphEncodingError, OperatorTable, graph_to_proto
from slipway.proto import program_pb2 as pb

__all__ = ["encode"]


def encode(exported: ExportedProgram) -> tuple[pb.ProgramGraph, dict[str, torch.Tensor]]:
    """Returns the graph's message and the weights that it uses, sorted by name.

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
    leaf = 0
    for spec in signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            if not isinstance(spec.arg, ConstantArgument):
                inputs[spec.arg.name] = pb.GraphInput(input=leaf)
            leaf += 1
        elif placeholders[spec.arg.name].users:
            assert spec.target is not None
            tensor = _weight(exported, spec.target)
            name = canonical.setdefault(_storage_key(tensor), spec.target)
            weights[name] = tensor
            owners[spec.arg.name] = name
    ordered = {name: weights[name] for name in sorted(weights)}
    index = {name: position for position, name in enumerate(ordered)}
    for placeholder, name in owners.items():
        inputs[placeholder] = pb.GraphInput(weight=index[name])
    try:
        operators = OperatorTable.of_graphs([graph])
        message = graph_to_proto(graph, inputs, _results(exported), operators)
    except GraphEncodingError as error:
        raise ExportError(
            ExportErrorKind.UNSUPPORTED_OPERATOR,
            str(error),
            "use operators of torch (aten) on tensors and sizes",
            user_line_of_node(error.node),
        ) from error
    return pb.ProgramGraph(operators=operators.to_proto(), methods=[message]), ordered


def _weight(exported: ExportedProgram, target: str) -> torch.Tensor:
    value = exported.state_dict.get(target, exported.constants.get(target))
    if not isinstance(value, torch.Tensor):
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the model holds '{target}', a {type(value).__name__}",
            "keep tensors, as parameters or buffers, and plain values only",
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
