"""Turns torch's exported program into the parts of ours: a graph and its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
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
from slipway.program.words import type_of
from slipway.proto import program_pb2 as pb

__all__ = ["encode"]


def encode(
    methods: Sequence[tuple[ExportedProgram, Contract]], custom_ops: Collection[str]
) -> tuple[pb.ProgramGraph, dict[str, torch.Tensor]]:
    """Returns the graphs' message and the weights that they use, sorted by name.

    Args:
      methods: the graph and the contract of each; the graph's inputs are weights and the tensors of
        the contract's inputs.
      custom_ops: namespaces of operators outside torch that the graphs may call.

    Raises:
      ExportError: a graph has something in it that a program cannot hold.
    """
    placeholders = [_Placeholders.of(exported) for exported, _ in methods]
    canonical: dict[tuple[object, ...], str] = {}
    weights: dict[str, torch.Tensor] = {}
    for item in placeholders:
        for placeholder, (name, tensor) in item.weights.items():
            shared = canonical.setdefault(_storage_key(tensor), name)
            weights.setdefault(shared, tensor)
            item.weights[placeholder] = (shared, tensor)
    ordered = {name: weights[name] for name in sorted(weights)}
    index = {name: position for position, name in enumerate(ordered)}
    try:
        operators = OperatorTable.of_graphs([exported.graph for exported, _ in methods], custom_ops)
        graphs = [
            _encode_method(exported, contract, item, index, operators)
            for (exported, contract), item in zip(methods, placeholders, strict=True)
        ]
    except GraphEncodingError as error:
        raise _translated(error) from error
    names = list(ordered)
    changed: dict[str, torch.Tensor] = {}
    for graph in graphs:
        for place in graph.mutated_inputs:
            if graph.inputs[place].WhichOneof("kind") == "weight":
                # The model goes on to change its own; the program starts from what it was.
                name = names[graph.inputs[place].weight]
                _require_own_memory(name, ordered)
                changed[name] = ordered[name].clone()
    ordered |= changed
    return pb.ProgramGraph(operators=operators.to_proto(), methods=graphs), ordered


@dataclass(frozen=True, slots=True)
class _Placeholders:
    """What the placeholders of a graph stand for, by name.

    Attributes:
      weights: the name and the tensor of each that is a weight and is used.
      tensors: those that are tensors of the call, in order.
    """

    weights: dict[str, tuple[str, torch.Tensor]]
    tensors: list[str]

    @classmethod
    def of(cls, exported: ExportedProgram) -> _Placeholders:
        nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
        weights = {}
        tensors = []
        for spec in exported.graph_signature.input_specs:
            if spec.kind is InputKind.USER_INPUT:
                tensors.append(spec.arg.name)
            elif nodes[spec.arg.name].users:
                assert spec.target is not None
                name = spec.target.removeprefix(MODEL_PREFIX)
                weights[spec.arg.name] = (name, _weight(exported, spec.target))
        return cls(weights, tensors)


def _encode_method(
    exported: ExportedProgram,
    contract: Contract,
    placeholders: _Placeholders,
    index: Mapping[str, int],
    operators: OperatorTable,
) -> pb.Graph:
    inputs = {
        placeholder: pb.GraphInput(weight=index[name])
        for placeholder, (name, _) in placeholders.weights.items()
    }
    leaves = [place for place, spec in enumerate(contract.inputs) if spec.tensor is not None]
    for placeholder, leaf in zip(placeholders.tensors, leaves, strict=True):
        inputs[placeholder] = pb.GraphInput(input=leaf)
    message = graph_to_proto(exported.graph, inputs, _results(exported), operators)
    message.mutated_inputs.extend(mutated_inputs(exported.graph, inputs))
    return message


def _translated(error: GraphEncodingError) -> ExportError:
    namespace = str(error.node.target).partition(".")[0]
    source = user_line_of_node(error.node)
    called = isinstance(error.node.target, torch._ops.OpOverload)
    if called and namespace not in ("aten", "prims"):
        return ExportError(
            ExportErrorKind.CUSTOM_OPERATOR_NOT_DECLARED,
            f"the model calls the operator '{error.node.target}', which is none of torch's own",
            f'declare it: custom_ops=["{namespace}"] in the spec, or the library that registers '
            "it in the target's custom_ops",
            source,
        )
    advice = "use operators of torch (aten) on tensors and sizes"
    if error.node.op == "get_attr":
        advice = (
            "where a branch makes a tensor of Python values, use torch.full; or make the tensor "
            "before, and give it to the branches as an operand"
        )
    return ExportError(ExportErrorKind.UNSUPPORTED_OPERATOR, str(error), advice, source)


def _weight(exported: ExportedProgram, target: str) -> torch.Tensor:
    value = exported.state_dict.get(target, exported.constants.get(target))
    name = target.removeprefix(MODEL_PREFIX)
    if not isinstance(value, torch.Tensor):
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the model holds '{name}', {type_of(value)}",
            "keep tensors, as parameters or buffers, and plain values only",
        )
    if problem := storage_problem(value):
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the model's '{name}' is {problem}",
            "convert it in the model's constructor",
        )
    try:
        value.untyped_storage().data_ptr()
    except RuntimeError as error:
        # It is symbolic, of which torch took the example's value for a constant.
        raise ExportError(
            ExportErrorKind.UNSUPPORTED_PYTHON,
            "the model computes a tensor where tracing does not see it, by .data or the like",
            "use .detach() in place of .data",
        ) from error
    return value.detach()


def _require_own_memory(name: str, weights: Mapping[str, torch.Tensor]) -> None:
    """Checks that no other weight is a view of what a changed one is, or the reverse.

    Raises:
      ExportError: one is. In a program each weight has memory of its own.
    """
    for other, tensor in weights.items():
        if other != name and _overlap(tensor, weights[name]):
            raise ExportError(
                ExportErrorKind.INVALID_SPEC,
                f"the model changes '{name}', which shares memory with '{other}'",
                "keep one of them, and compute what the other is when the model is called",
            )


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Returns whether two weights may have an element in common."""
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    if not (one.numel() and other.numel()):
        return False
    (start, end), (other_start, other_end) = map(_extent, (one, other))
    return start < other_end and other_start < end


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Returns the first byte of a weight in its storage, and the one behind its last."""
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    start = tensor.storage_offset()
    return int(start) * tensor.element_size(), int(start + last + 1) * tensor.element_size()


def _storage_key(tensor: torch.Tensor) -> tuple[object, ...]:
    """Returns what two names for the same weight have in common."""
    return (
        tensor.untyped_storage().data_ptr() or id(tensor),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
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
