"""Programs for tests of the server, written node by node: no capture, so they are made in no time.

affine    x FP32 (batch, 4)                                 -> y FP32 (batch, 3)
lookup    tokens INT64 (batch, seq), mask BOOL (batch, seq) -> embedded FP32 (batch, seq, 2),
                                                               kept BOOL (batch, seq)
echo      an input of every datatype, each of its own length -> the same values, by name
power     x FP32 (n, n)                                     -> y FP32 (), slowly
poison    x FP32 (batch, 4)                                 -> y FP32 (batch, 4), or a device fails
columns   x FP32 (4, batch)                                 -> y FP32 (3, batch)
checked   x FP32 (batch, 4), whose sum is at least zero     -> y FP32 (batch, 4)
peaks     x FP32 (batch, rows, columns)                     -> y FP32 (batch)
places    x FP32 (4)                                        -> places INT64 (?, 1), of what is not 0

Requests for affine, lookup, columns and peaks may share batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import fx

from slipway.program import Contract, InputSpec, OutputSpec, Program, Symbol, TensorSpec
from slipway.program.batching import Batching, BatchingEvidence, Padding
from slipway.program.expressions import Constant, SymbolReference, Unknown
from slipway.program.graph_codec import OperatorTable, graph_to_proto
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb
from slipway.serving.datatypes import DATATYPES

AFFINE_WEIGHT = torch.arange(12, dtype=torch.float32).reshape(3, 4)
LOOKUP_TABLE = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])

Build = Callable[[fx.Graph, list[fx.Node]], Sequence[fx.Node]]
"""Adds nodes to a graph, given those of the weights and inputs, and returns the outputs."""

_LEAF = Tree(Kind.LEAF)


def write_affine(
    directory: Path,
    *,
    scale: float = 1.0,
    methods: Sequence[str] = ("forward",),
    most_rows: int | None = 8,
) -> None:
    """Writes `affine`: batch is 1..most_rows, y = x @ (scale * AFFINE_WEIGHT).T, in each method."""
    batch = SymbolReference(0, "batch")

    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        weight, x = nodes
        return [graph.call_function(torch.ops.aten.linear.default, (x, weight))]

    contract = _contract(
        [Symbol("batch", 1, most_rows)],
        {"x": TensorSpec(ScalarType.FLOAT32, (batch, Constant(4)))},
        {"y": TensorSpec(ScalarType.FLOAT32, (batch, Constant(3)))},
        batch_symbol=0,
        batching=_batching({"x": 0}, (0,)),
    )
    _write(directory, contract, build, {"weight": AFFINE_WEIGHT * scale}, methods=methods)


def write_columns(directory: Path) -> None:
    """Writes `columns`: batch is 1..8, and y = AFFINE_WEIGHT @ x, so rows are columns here."""
    batch = SymbolReference(0, "batch")

    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        return [graph.call_function(torch.ops.aten.mm.default, tuple(nodes))]

    contract = _contract(
        [Symbol("batch", 1, 8)],
        {"x": TensorSpec(ScalarType.FLOAT32, (Constant(4), batch))},
        {"y": TensorSpec(ScalarType.FLOAT32, (Constant(3), batch))},
        batching=_batching({"x": 1}, (1,)),
    )
    _write(directory, contract, build, {"weight": AFFINE_WEIGHT})


def write_lookup(directory: Path) -> None:
    """Writes `lookup`: batch is 0..4 and seq 1..16; tokens are 0..2."""
    sizes = (SymbolReference(0, "batch"), SymbolReference(1, "seq"))

    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        table, tokens, mask = nodes
        embedded = graph.call_function(torch.ops.aten.embedding.default, (table, tokens))
        kept = graph.call_function(torch.ops.aten.logical_not.default, (mask,))
        return [embedded, kept]

    contract = _contract(
        [Symbol("batch", 0, 4), Symbol("seq", 1, 16)],
        {
            "tokens": TensorSpec(ScalarType.INT64, sizes),
            "mask": TensorSpec(ScalarType.BOOL, sizes),
        },
        {
            "embedded": TensorSpec(ScalarType.FLOAT32, (*sizes, Constant(2))),
            "kept": TensorSpec(ScalarType.BOOL, sizes),
        },
        batch_symbol=0,
        batching=_batching({"tokens": 0, "mask": 0}, (0, 0)),
    )
    _write(directory, contract, build, {"table": LOOKUP_TABLE})


def write_echo(directory: Path) -> None:
    """Writes `echo`: an input named `fp32` gives an output named `fp32_out`, and so on."""

    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        return [graph.call_function(torch.ops.aten.clone.default, (node,)) for node in nodes]

    symbols, specs = [], {}
    for index, (name, datatype) in enumerate(DATATYPES.items()):
        symbols.append(Symbol(f"{name.lower()}_length", 0, None))
        shape = (SymbolReference(index, symbols[-1].name),)
        specs[name.lower()] = TensorSpec(datatype.scalar_type, shape)
    outputs = {f"{name}_out": spec for name, spec in specs.items()}
    _write(directory, _contract(symbols, specs, outputs), build, {})


def write_power(directory: Path) -> None:
    """Writes `power`: y is the sum of x ** 2**20; at n = 1024 it takes some tenths of a second."""
    n = SymbolReference(0, "n")

    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        (value,) = nodes
        for _ in range(20):
            value = graph.call_function(torch.ops.aten.mm.default, (value, value))
        return [graph.call_function(torch.ops.aten.sum.default, (value,))]

    inputs = {"x": TensorSpec(ScalarType.FLOAT32, (n, n))}
    outputs = {"y": TensorSpec(ScalarType.FLOAT32, ())}
    _write(directory, _contract([Symbol("n", 1, 4096)], inputs, outputs), build, {})


def write_poison(directory: Path) -> None:
    """Writes `poison`, of the operator in //tests/operations:poison_ops.py: zeros come back."""
    shape = (SymbolReference(0, "batch"), Constant(4))

    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        return [graph.call_function(torch.ops.slipway_tests.poison.default, tuple(nodes))]

    contract = _contract(
        [Symbol("batch", 1, 8)],
        {"x": TensorSpec(ScalarType.FLOAT32, shape)},
        {"y": TensorSpec(ScalarType.FLOAT32, shape)},
    )
    _write(directory, contract, build, {}, custom_ops=["slipway_tests"])


def write_checked(directory: Path) -> None:
    """Writes `checked`: batch is 1..8, and y = -x, if the sum of x is not negative."""
    shape = (SymbolReference(0, "batch"), Constant(4))

    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        total = graph.call_function(torch.ops.aten.sum.default, tuple(nodes))
        allowed = graph.call_function(torch.ops.aten.ge.Scalar, (total, 0))
        message = "the sum is negative"
        graph.call_function(torch.ops.aten._assert_async.msg, (allowed, message))
        return [graph.call_function(torch.ops.aten.neg.default, tuple(nodes))]

    contract = _contract(
        [Symbol("batch", 1, 8)],
        {"x": TensorSpec(ScalarType.FLOAT32, shape)},
        {"y": TensorSpec(ScalarType.FLOAT32, shape)},
    )
    _write(directory, contract, build, {})


def write_peaks(directory: Path) -> None:
    """Writes `peaks`: y is the sum of the largest element of each row; both may be padded."""
    batch, rows, columns = map(SymbolReference, range(3), ("batch", "rows", "columns"))

    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        largest = graph.call_function(torch.ops.aten.amax.default, (*nodes, [2]))
        return [graph.call_function(torch.ops.aten.sum.dim_IntList, (largest, [1]))]

    contract = _contract(
        [Symbol("batch", 1, 8), Symbol("rows", 1, 16), Symbol("columns", 1, 16)],
        {"x": TensorSpec(ScalarType.FLOAT32, (batch, rows, columns))},
        {"y": TensorSpec(ScalarType.FLOAT32, (batch,))},
        batch_symbol=0,
        batching=dataclasses.replace(
            _batching({"x": 0}, (0,)),
            paddings=(Padding("rows", {"x": 0.0}), Padding("columns", {"x": -1e9})),
        ),
    )
    _write(directory, contract, build, {})


def write_places(directory: Path) -> None:
    """Writes `places`: how many rows come depends on the values."""

    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        return [graph.call_function(torch.ops.aten.nonzero.default, tuple(nodes))]

    contract = _contract(
        [],
        {"x": TensorSpec(ScalarType.FLOAT32, (Constant(4),))},
        {"places": TensorSpec(ScalarType.INT64, (Unknown(), Constant(1)))},
    )
    _write(directory, contract, build, {})


def _contract(
    symbols: Sequence[Symbol],
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    batch_symbol: int | None = None,
    batching: Batching | None = None,
) -> Contract:
    arguments = Tree(Kind.TUPLE, (_LEAF,) * len(inputs))
    return Contract(
        method="forward",
        symbols=tuple(symbols),
        inputs=tuple(InputSpec(name, spec) for name, spec in inputs.items()),
        input_tree=Tree(Kind.TUPLE, (arguments, Tree(Kind.DICT))),
        parameters=tuple(inputs),
        outputs=tuple(OutputSpec(name, spec) for name, spec in outputs.items()),
        output_tree=Tree(Kind.TUPLE, (_LEAF,) * len(outputs)),
        batch_symbol=batch_symbol,
        batching=batching,
    )


def _batching(inputs: Mapping[str, int], outputs: tuple[int, ...]) -> Batching:
    # Such small graphs are independent row by row as anyone can see.
    evidence = BatchingEvidence(
        batch_sizes=(1, 2), settings=1, comparisons=0, perturbations=0, seed=0
    )
    return Batching("batch", inputs, outputs, atol=1e-6, rtol=1e-5, evidence=evidence)


def _write(
    directory: Path,
    contract: Contract,
    build: Build,
    weights: Mapping[str, torch.Tensor],
    custom_ops: Sequence[str] = (),
    methods: Sequence[str] = ("forward",),
) -> None:
    graph = fx.Graph()
    inputs: dict[str, pb.GraphInput] = {}
    nodes = []
    for index, name in enumerate(weights):
        nodes.append(graph.placeholder(f"weight_{name}"))
        inputs[nodes[-1].name] = pb.GraphInput(weight=index)
    for index, name in enumerate(contract.tensor_inputs):
        nodes.append(graph.placeholder(f"input_{name}"))
        inputs[nodes[-1].name] = pb.GraphInput(input=index)
    outputs = list(build(graph, nodes))
    graph.output(tuple(outputs))
    operators = OperatorTable.of_graphs([graph], frozenset(custom_ops))
    graphs = pb.ProgramGraph(
        operators=operators.to_proto(),
        methods=[graph_to_proto(graph, inputs, outputs, operators)] * len(methods),
    )
    cpu = torch.device("cpu")
    contracts = {name: dataclasses.replace(contract, method=name) for name in methods}
    program = Program(contracts, graphs, weights, device=cpu, custom_ops=frozenset(custom_ops))
    program.save(directory)
