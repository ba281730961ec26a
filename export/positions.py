"""Where in the model's code the parts of a program come from, and what it was traced on."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from slipway.export.sources import user_line_of_node
from slipway.export.tracing import Traced
from slipway.program.contract import Contract
from slipway.program.torch_types import from_torch
from slipway.proto import program_pb2 as pb

__all__ = ["sources_of"]


def sources_of(traced: Mapping[str, Traced], contracts: Mapping[str, Contract]) -> pb.Sources:
    """Returns the sources of a program, its methods in the order of `contracts`."""
    return pb.Sources(
        methods=[_method_sources(traced[name], contract) for name, contract in contracts.items()]
    )


def _method_sources(traced: Traced, contract: Contract) -> pb.MethodSources:
    message = pb.MethodSources(relations=[item.source for item in contract.relations])
    positions: dict[str, int] = {}
    lines = [
        user_line_of_node(node)
        for node in traced.capture.exported.graph.nodes
        if node.op == "call_function"
    ]
    for line in lines:
        if line is not None:
            positions.setdefault(str(line), len(positions))
    message.positions.extend(positions)
    message.nodes.extend(len(positions) if line is None else positions[str(line)] for line in lines)
    for spec, leaf in zip(contract.inputs, traced.example, strict=True):
        if isinstance(leaf, torch.Tensor):
            message.example.add(name=spec.name, dtype=from_torch(leaf.dtype).name, shape=leaf.shape)
    return message
