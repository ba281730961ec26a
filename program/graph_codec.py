"""Graphs: from a torch.fx graph to its protobuf message and back.

A message names no Python and no variable: values are numbered, operators come from the allow-list
in `operators`, and the names in the graph that is made of it are our own.
"""

from __future__ import annotations

import itertools
import keyword
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from slipway.program.assertions import ASSERTIONS
from slipway.program.contract_codec import scalar_type_from_proto
from slipway.program.errors import CorruptProgramError, OperatorMismatchError
from slipway.program.operators import (
    check_arguments,
    operator_name,
    operator_schema,
    resolve_operator,
    subgraph_places,
)
from slipway.program.torch_types import from_torch, to_torch
from slipway.program.vmap import check_nesting
from slipway.program.words import type_of, with_article
from slipway.proto import program_pb2 as pb

__all__ = [
    "GraphEncodingError",
    "OperatorTable",
    "check_graph_size",
    "graph_from_proto",
    "graph_to_proto",
]

_MAXIMUM_NODES = 2**18
_MAXIMUM_SUBGRAPHS = 2**12
"""Of a program. A node takes its loader 40 µs and 9 kB, and a subgraph ten times that; real graphs
have tens of thousands of nodes at most, and a subgraph or two for a layer."""

_MEMORY_FORMATS: dict[torch.memory_format, pb.MemoryFormat] = {
    torch.contiguous_format: pb.CONTIGUOUS,
    torch.preserve_format: pb.PRESERVE,
    torch.channels_last: pb.CHANNELS_LAST,
    torch.channels_last_3d: pb.CHANNELS_LAST_3D,
}
_MEMORY_FORMAT_NAMES = {value: key for key, value in _MEMORY_FORMATS.items()}


class GraphEncodingError(ValueError):
    """A graph has something in it that the format has no place for; `node` is where."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        self.node = node
        super().__init__(reason)


class OperatorTable:
    """The operators of all graphs of a program, which nodes refer to by index."""

    def __init__(self, names: Sequence[str], custom_ops: Collection[str]) -> None:
        self._custom_ops = custom_ops
        self.names = sorted(set(names))
        self._index = {name: index for index, name in enumerate(self.names)}

    @classmethod
    def of_graphs(
        cls, graphs: Sequence[fx.Graph], custom_ops: Collection[str] = ()
    ) -> OperatorTable:
        """Returns the table of every operator that the graphs call.

        Args:
          graphs: with their subgraphs.
          custom_ops: namespaces, beside torch's own, whose operators they may call.

        Raises:
          GraphEncodingError: programs may not call one of them.
        """
        names = []
        for graph in itertools.chain.from_iterable(map(_with_subgraphs, graphs)):
            for node in graph.nodes:
                if node.op == "call_function":
                    try:
                        names.append(operator_name(node.target, custom_ops))
                    except OperatorMismatchError as error:
                        raise GraphEncodingError(node, str(error)) from error
        return cls(names, custom_ops)

    def index(self, target: object) -> int:
        """Returns the index of a graph node's target."""
        return self._index[operator_name(target, self._custom_ops)]

    def to_proto(self) -> list[pb.Operator]:
        """Returns the table with the schemas that the running torch has."""
        return [
            pb.Operator(name=name, schema=operator_schema(name, self._custom_ops))
            for name in self.names
        ]


def graph_to_proto(
    graph: fx.Graph,
    inputs: Mapping[str, pb.GraphInput],
    outputs: Sequence[Any],
    operators: OperatorTable,
) -> pb.Graph:
    """Returns the message for a graph.

    Args:
      graph: placeholders, call_function nodes and an output.
      inputs: what each placeholder stands for, by its name; the others must be unused, and are left
        out.
      outputs: what the method returns: nodes of the graph or integers.
      operators: a table in which every operator of the graph has an entry.

    Raises:
      GraphEncodingError: the format has no place for a node or an argument.
    """
    message = pb.Graph()
    numbers: dict[fx.Node, int] = {}
    subgraphs: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in inputs:
            numbers[node] = len(numbers)
            message.inputs.append(inputs[node.name])

    def encode(value: Any, node: fx.Node) -> pb.Argument:
        return _argument_to_proto(value, node, numbers, subgraphs)

    for node in graph.nodes:
        if node.op == "call_function":
            encoded = message.nodes.add(operator=operators.index(node.target))
            encoded.arguments.extend(encode(argument, node) for argument in node.args)
            for name in sorted(node.kwargs):
                encoded.keyword_arguments.add(name=name, value=encode(node.kwargs[name], node))
            numbers[node] = len(numbers)
        elif node.op == "get_attr":
            if node.target not in subgraphs:
                subgraphs[node.target] = len(subgraphs)
                message.subgraphs.append(_subgraph_to_proto(_subgraph(node), operators))
        elif node.op == "output":
            message.outputs.extend(encode(value, node) for value in outputs)
        elif node.op != "placeholder":
            raise GraphEncodingError(node, f"a program cannot have {with_article(node.op)} node")
    return message


def _with_subgraphs(graph: fx.Graph) -> Iterator[fx.Graph]:
    yield graph
    for node in graph.nodes:
        if node.op == "get_attr":
            yield from _with_subgraphs(_subgraph(node))


def _subgraph(node: fx.Node) -> fx.Graph:
    module = getattr(node.graph.owning_module, str(node.target), None)
    if not isinstance(module, fx.GraphModule):
        raise GraphEncodingError(
            node, f"the graph of a branch or a loop holds {type_of(module)}, {node.target}"
        )
    return module.graph


def _subgraph_to_proto(graph: fx.Graph, operators: OperatorTable) -> pb.Graph:
    placeholders = [node.name for node in graph.nodes if node.op == "placeholder"]
    inputs = {name: pb.GraphInput(operand=place) for place, name in enumerate(placeholders)}
    (output,) = (node for node in graph.nodes if node.op == "output")
    result = output.args[0]
    single = not isinstance(result, list | tuple)
    message = graph_to_proto(graph, inputs, [result] if single else list(result), operators)
    message.single_output = single
    return message


def _argument_to_proto(
    value: Any, node: fx.Node, numbers: Mapping[fx.Node, int], subgraphs: Mapping[str, int]
) -> pb.Argument:
    match value:
        case None:
            return pb.Argument(none=pb.Nothing())
        case fx.Node() if value.op == "get_attr":
            return pb.Argument(subgraph=subgraphs[str(value.target)])
        case fx.Node():
            if value not in numbers:
                raise GraphEncodingError(node, f"it uses '{value}', which no input stands for")
            return pb.Argument(value=numbers[value])
        case bool():
            return pb.Argument(boolean=value)
        case int():
            return pb.Argument(integer=value)
        case float():
            return pb.Argument(floating=value)
        case complex():
            return pb.Argument(complex=pb.Argument.Complex(real=value.real, imaginary=value.imag))
        case str():
            return pb.Argument(string=value)
        case torch.dtype():
            try:
                return pb.Argument(dtype=from_torch(value).name)
            except ValueError as error:
                raise GraphEncodingError(node, str(error)) from error
        case torch.device():
            return pb.Argument(device=pb.Device(placement=pb.Device.PROGRAM))
        case torch.memory_format():
            return pb.Argument(memory_format=_MEMORY_FORMATS[value])
        case torch.layout() if value is torch.strided:
            return pb.Argument(layout=pb.STRIDED)
        case list() | tuple():
            items = [_argument_to_proto(item, node, numbers, subgraphs) for item in value]
            return pb.Argument(list=pb.Argument.Arguments(arguments=items))
        case _:
            raise GraphEncodingError(
                node, f"a program cannot hold the argument {value!r} ({type(value).__name__})"
            )


def check_graph_size(message: pb.ProgramGraph) -> None:
    """Raises CorruptProgramError if a program's graphs are larger than loaders take."""
    nodes = len(message.operators)
    subgraphs = 0
    waiting = list(message.methods)
    while waiting:
        graph = waiting.pop()
        nodes += len(graph.inputs) + len(graph.nodes) + len(graph.outputs)
        subgraphs += len(graph.subgraphs)
        waiting += graph.subgraphs
    if nodes > _MAXIMUM_NODES or subgraphs > _MAXIMUM_SUBGRAPHS:
        raise CorruptProgramError(
            f"the graphs have {nodes} nodes and {subgraphs} subgraphs; {_MAXIMUM_NODES} and "
            f"{_MAXIMUM_SUBGRAPHS} are allowed, far more than programs have: do not unroll loops, "
            "or split the model into several"
        )


def graph_from_proto(
    message: pb.Graph,
    operators: Sequence[pb.Operator],
    device: torch.device,
    custom_ops: Collection[str] = (),
    *,
    torch_assertions: bool = False,
) -> fx.GraphModule:
    """Returns a callable of a graph, from the graph's inputs to a tuple of its outputs.

    Args:
      message: the graph.
      operators: the program's operators.
      device: where the program's tensors are.
      custom_ops: namespaces, beside torch's own, whose operators it may call.
      torch_assertions: whether it asserts by torch's operators, as a graph to trace must, instead
        of raising errors of ours.

    Raises:
      CorruptProgramError: the message is not a graph.
      OperatorMismatchError: an operator may not be called or is not there.
    """
    resolved = [resolve_operator(item.name, item.schema, custom_ops) for item in operators]
    ours = {} if torch_assertions else ASSERTIONS
    targets = [
        ours.get(item.name, target) for item, target in zip(operators, resolved, strict=True)
    ]
    names = [item.name.partition("::")[2].partition(".")[0] for item in operators]
    return _graph_module(message, targets, names, device)


def _graph_module(
    message: pb.Graph,
    targets: Sequence[Callable[..., Any]],
    names: Sequence[str],
    device: torch.device,
) -> fx.GraphModule:
    root = torch.nn.Module()
    graph = fx.Graph()
    decoder = _Decoder(device)
    for number, subgraph in enumerate(message.subgraphs):
        # fx looks the attribute up while it makes the node that refers to it.
        setattr(root, f"subgraph_{number}", _graph_module(subgraph, targets, names, device))
        graph.owning_module = root  # type: ignore[assignment]
        decoder.subgraphs.append(graph.get_attr(f"subgraph_{number}"))
    for number in range(len(message.inputs)):
        decoder.values.append(graph.placeholder(f"input_{number}"))
    for node in message.nodes:
        if node.operator >= len(targets):
            raise CorruptProgramError(f"a node calls operator {node.operator} of {len(targets)}")
        target = targets[node.operator]
        places = subgraph_places(target)
        arguments = tuple(
            decoder.subgraph(item) if place in places else decoder.argument(item)
            for place, item in enumerate(node.arguments)
        )
        keywords = {
            _parameter_name(item.name): decoder.argument(item.value)
            for item in node.keyword_arguments
        }
        check_arguments(target, arguments, keywords)
        decoder.values.append(
            graph.create_node(
                "call_function", target, arguments, keywords, name=names[node.operator]
            )
        )
    results = tuple(decoder.argument(item) for item in message.outputs)
    if message.single_output and len(results) != 1:
        raise CorruptProgramError(f"a subgraph with one output has {len(results)}")
    graph.output(results[0] if message.single_output else results)
    check_nesting(graph)
    try:
        return fx.GraphModule(root, graph)
    except (AttributeError, IndexError, KeyError, NameError, SyntaxError, TypeError) as error:
        # torch.fx checks nothing of the arguments that functions of Python are given.
        raise CorruptProgramError(f"a graph has nodes that cannot be called: {error}") from error


def _parameter_name(name: str) -> str:
    # torch.fx writes it into the Python code that it makes of a graph.
    if not name.isidentifier() or keyword.iskeyword(name):
        raise CorruptProgramError(f"a node has a keyword argument called {name!r}")
    return name


class _Decoder:
    def __init__(self, device: torch.device) -> None:
        self.values: list[fx.Node] = []
        self.subgraphs: list[fx.Node] = []
        self._device = device

    def subgraph(self, message: pb.Argument) -> fx.Node:
        if message.WhichOneof("kind") != "subgraph" or message.subgraph >= len(self.subgraphs):
            raise CorruptProgramError(
                "a node runs what is none of its graph's subgraphs; only those can be run"
            )
        return self.subgraphs[message.subgraph]

    def argument(self, message: pb.Argument) -> Any:
        match message.WhichOneof("kind"):
            case "value":
                if message.value >= len(self.values):
                    raise CorruptProgramError(
                        f"value {message.value} is used before it is computed"
                    )
                return self.values[message.value]
            case "none":
                return None
            case "boolean":
                return message.boolean
            case "integer":
                return message.integer
            case "floating":
                return message.floating
            case "complex":
                return complex(message.complex.real, message.complex.imaginary)
            case "string":
                return message.string
            case "dtype":
                return to_torch(scalar_type_from_proto(message.dtype))
            case "device" if message.device.placement == pb.Device.PROGRAM:
                return self._device
            case "layout" if message.layout == pb.STRIDED:
                return torch.strided
            case "memory_format" if message.memory_format in _MEMORY_FORMAT_NAMES:
                return _MEMORY_FORMAT_NAMES[message.memory_format]
            case "list":
                return [self.argument(item) for item in message.list.arguments]
            case "subgraph":
                # As a value it could be run, or be handed on, where nobody looks for it.
                raise CorruptProgramError(
                    "a graph uses a subgraph as a value; only operators that run it may have it"
                )
            case _:
                raise CorruptProgramError("a node has an argument of an unknown kind")
