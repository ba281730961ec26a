"""A program's graph in words: what runs, and for which line of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from slipway.program.container import Container
from slipway.program.contract_codec import scalar_type_from_proto
from slipway.program.errors import CorruptProgramError
from slipway.proto import program_pb2 as pb

__all__ = ["graph_text"]

_INDENT = "  "

_Item = TypeVar("_Item")


def graph_text(container: Container) -> str:
    """Returns the graphs of a program by lines, a node on each.

    Values are numbered as in the program: `%0`, `%1`, … for the inputs, and then for the nodes. At
    a node's end is the FILE:LINE that it comes from, where the program has its sources.

    Raises:
      CorruptProgramError: the graph refers to something that there is not.
    """
    graphs = container.graphs()
    contracts = list(container.contracts().values())
    sources = container.sources_index().methods
    names = [operator.name for operator in graphs.operators]
    weights = container.weights_index().weights
    lines: list[str] = []
    for index, graph in enumerate(graphs.methods):
        contract = _at(contracts, index, "method")
        positions = _positions(sources[index]) if index < len(sources) else []
        lines.append(f"method {contract.method}")
        inputs = [spec.name for spec in contract.inputs]
        for line in _graph_lines(graph, names, inputs, weights, positions):
            lines.append(_INDENT + line)
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def _positions(sources: pb.MethodSources) -> list[str]:
    return [
        sources.positions[index] if index < len(sources.positions) else ""
        for index in sources.nodes
    ]


def _graph_lines(
    graph: pb.Graph,
    operators: Sequence[str],
    inputs: Sequence[str],
    weights: Sequence[pb.Weight],
    positions: Sequence[str] = (),
) -> Iterator[str]:
    for number, item in enumerate(graph.inputs):
        changed = "  (changed in place)" if number in graph.mutated_inputs else ""
        yield f"%{number} = {_input(item, inputs, weights)}{changed}"
    for index, node in enumerate(graph.nodes):
        arguments = [_argument(argument) for argument in node.arguments]
        arguments += [f"{item.name}={_argument(item.value)}" for item in node.keyword_arguments]
        operator = _at(operators, node.operator, "operator")
        position = positions[index] if index < len(positions) else ""
        line = f"%{len(graph.inputs) + index} = {operator}({', '.join(arguments)})"
        yield line + (f"  # {position}" if position else "")
    yield f"return {', '.join(map(_argument, graph.outputs)) or 'nothing'}"
    for number, subgraph in enumerate(graph.subgraphs):
        yield f"subgraph {number}"
        for line in _graph_lines(subgraph, operators, inputs, weights):
            yield _INDENT + line


def _input(item: pb.GraphInput, inputs: Sequence[str], weights: Sequence[pb.Weight]) -> str:
    match item.WhichOneof("kind"):
        case "input":
            return f"input {_at(inputs, item.input, 'input')}"
        case "weight":
            weight = _at(weights, item.weight, "weight")
            shape = list(weight.shape)
            return f"weight {weight.name}: {scalar_type_from_proto(weight.dtype).value}{shape}"
        case _:
            return f"operand {item.operand}"


def _argument(argument: pb.Argument) -> str:
    match argument.WhichOneof("kind"):
        case "value":
            return f"%{argument.value}"
        case "boolean":
            return str(argument.boolean)
        case "integer":
            return str(argument.integer)
        case "floating":
            return repr(argument.floating)
        case "complex":
            return repr(complex(argument.complex.real, argument.complex.imaginary))
        case "string":
            return repr(argument.string)
        case "dtype":
            return scalar_type_from_proto(argument.dtype).value
        case "device":
            return "device"
        case "layout":
            return _name_of(pb.Layout, argument.layout)
        case "memory_format":
            return _name_of(pb.MemoryFormat, argument.memory_format)
        case "list":
            return f"[{', '.join(map(_argument, argument.list.arguments))}]"
        case "subgraph":
            return f"subgraph {argument.subgraph}"
        case _:
            return "None"


def _name_of(kinds: Any, value: int) -> str:
    try:
        name: str = kinds.Name(value)
    except ValueError:
        raise CorruptProgramError(
            f"the graph has an argument of an unknown kind: {value}"
        ) from None
    return name.lower()


def _at(items: Sequence[_Item], index: int, what: str) -> _Item:
    if index >= len(items):
        raise CorruptProgramError(f"the graph refers to {what} {index}; there are {len(items)}")
    return items[index]
