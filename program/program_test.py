"""Programs, written node by node: calling, saving, loading, and refusing what is no good."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import fx

from slipway.program import Program, load
from slipway.program.container import read_container, write_container
from slipway.program.contract import (
    Contract,
    InputSpec,
    OutputSpec,
    PythonValue,
    Symbol,
    TensorSpec,
)
from slipway.program.errors import (
    ContractViolation,
    CorruptProgramError,
    DigestMismatchError,
    OperatorMismatchError,
    ProgramError,
    Violation,
)
from slipway.program.expressions import Constant, SymbolReference
from slipway.program.graph_codec import (
    GraphEncodingError,
    OperatorTable,
    check_graph_size,
    graph_to_proto,
)
from slipway.program.operators import operator_name, operator_schema, resolve_operator
from slipway.program.scalar_types import ScalarType
from slipway.program.torch_types import to_torch
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

CPU = torch.device("cpu")
LEAF = Tree(Kind.LEAF)
BATCH = SymbolReference(0, "batch")
VECTORS = TensorSpec(ScalarType.FLOAT32, (BATCH, Constant(4)))

Build = Callable[[fx.Graph, list[fx.Node]], Sequence[Any]]


def calling(target: Callable[..., Any], *arguments: Any, **keywords: Any) -> Build:
    """A graph of one node: the inputs, then further arguments."""
    return lambda graph, nodes: [graph.call_function(target, (*nodes, *arguments), keywords)]


def program_of(
    build: Build,
    inputs: Mapping[str, TensorSpec | PythonValue] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    outputs: Sequence[OutputSpec] = (OutputSpec("out", TensorSpec(ScalarType.FLOAT32, (BATCH,))),),
    input_tree: Tree | None = None,
    output_tree: Tree = LEAF,
    parameters: tuple[str, ...] | None = None,
) -> Program:
    inputs = {"x": VECTORS} if inputs is None else inputs
    weights = {} if weights is None else weights
    names = tuple(inputs)
    contract = Contract(
        method="forward",
        symbols=(Symbol("batch", 1, 8),),
        inputs=tuple(
            InputSpec(name, spec)
            if isinstance(spec, TensorSpec)
            else InputSpec(name, constant=spec)
            for name, spec in inputs.items()
        ),
        input_tree=input_tree
        or Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF,) * len(names)), Tree(Kind.DICT))),
        parameters=names if parameters is None else parameters,
        outputs=tuple(outputs),
        output_tree=output_tree,
    )
    graph = fx.Graph()
    places: dict[str, pb.GraphInput] = {}
    nodes = []
    for position in range(len(weights)):
        nodes.append(graph.placeholder(f"weight_{position}"))
        places[nodes[-1].name] = pb.GraphInput(weight=position)
    for position, spec in enumerate(inputs.values()):
        if isinstance(spec, TensorSpec):
            nodes.append(graph.placeholder(f"input_{position}"))
            places[nodes[-1].name] = pb.GraphInput(input=position)
    results = build(graph, nodes)
    graph.output(tuple(results))
    operators = OperatorTable.of_graphs([graph])
    message = pb.ProgramGraph(
        operators=operators.to_proto(), methods=[graph_to_proto(graph, places, results, operators)]
    )
    return Program({"forward": contract}, message, weights, device=CPU)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def affine(weights: Mapping[str, torch.Tensor] | None = None) -> Program:
    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        bias, weight, x = nodes
        return [graph.call_function(torch.ops.aten.linear.default, (x, weight, bias))]

    return program_of(
        build,
        weights=weights or {"bias": torch.ones(3), "weight": torch.arange(12.0).reshape(3, 4)},
        outputs=[OutputSpec("y", TensorSpec(ScalarType.FLOAT32, (BATCH, Constant(3))))],
    )


# Calling ------------------------------------------------------------------------------------------


def test_arguments_may_be_positional_or_named() -> None:
    program = program_of(
        calling(torch.ops.aten.sub.Tensor),
        {"x": VECTORS, "y": VECTORS},
        outputs=[OutputSpec("out", VECTORS)],
    )
    x, y = torch.rand(2, 4), torch.rand(2, 4)
    for result in (program(x, y), program(x, y=y), program(y=y, x=x)):
        assert torch.equal(result, x - y)


def refused(program: Program, *args: object, **kwargs: object) -> Sequence[Violation]:
    with pytest.raises(ContractViolation) as caught:
        program(*args, **kwargs)
    return caught.value.violations


@pytest.mark.parametrize(
    ("args", "kwargs", "code", "message"),
    [
        ((), {}, "missing_input", "argument 'x' is missing"),
        ((torch.ones(1, 4),) * 2, {}, "structure", "2 positional arguments; allowed: 1"),
        ((torch.ones(1, 4),), {"x": 1}, "unknown_input", "'x' is given twice or unknown"),
        ((torch.ones(1, 4),), {"z": 1}, "unknown_input", "'z' is given twice or unknown"),
        (([1.0],), {}, "structure", "input 'x' is a list; allowed: a tensor float32"),
        ((None,), {}, "structure", "input 'x' is a NoneType"),
        ((torch.ones(1, 4).to_sparse(),), {}, "structure", "layout torch.sparse_coo"),
        ((torch.ones(1, 4, device="meta"),), {}, "structure", "on device meta"),
        ((torch.ones(1, 4).double(),), {}, "dtype", "is float64; allowed: float32"),
        ((torch.zeros(1, 4, dtype=torch.uint8).view(torch.float8_e8m0fnu),), {}, "dtype", "e8m0"),
        ((torch.ones(4),), {}, "rank", "rank of [4] is 1; allowed: 2"),
        ((torch.ones(9, 4),), {}, "range", "is 9; allowed: 1..8"),
        ((torch.ones(2, 5),), {}, "static_size", "is 5; allowed: exactly 4"),
    ],
)
def test_a_call_that_breaks_the_contract_says_how(
    args: tuple[object, ...], kwargs: dict[str, object], code: str, message: str
) -> None:
    (violation,) = refused(affine(), *args, **kwargs)
    assert violation.code == code
    assert message in violation.description


def test_every_argument_that_is_wrong_is_named_at_once() -> None:
    program = program_of(
        calling(torch.ops.aten.sub.Tensor), {"x": VECTORS, "flag": True, "y": VECTORS}
    )
    found = refused(program, torch.ones(9, 4), False, "no tensor")
    assert [(item.input, item.code) for item in found] == [
        ("flag", "constant"),
        ("y", "structure"),
        ("x", "range"),
    ]


@pytest.mark.parametrize(
    ("constant", "same", "others"),
    [
        (None, None, [0, False, torch.ones(())]),
        (True, True, [False, 1, 1.0]),
        (3, 3, [4, 3.0, True, "3"]),
        (0.5, 0.5, [0.25, math.nan]),
        (math.nan, math.nan, [0.5]),
        ("a", "a", ["b", None]),
    ],
)
def test_a_constant_argument_must_be_just_that(
    constant: PythonValue, same: object, others: list[object]
) -> None:
    program = program_of(
        calling(torch.ops.aten.neg.default),
        {"x": VECTORS, "mode": constant},
        outputs=[OutputSpec("out", VECTORS)],
    )
    assert torch.equal(program(torch.ones(1, 4), same), -torch.ones(1, 4))
    for other in others:
        (violation,) = refused(program, torch.ones(1, 4), other)
        assert (violation.code, violation.allowed) == ("constant", repr(constant))


def test_arguments_and_results_may_be_nested() -> None:
    inner = Tree(Kind.DICT, (LEAF, Tree(Kind.LIST, (LEAF, LEAF))), ("k", 3))

    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        return [graph.call_function(torch.ops.aten.neg.default, (node,)) for node in nodes]

    program = program_of(
        build,
        {"first.k": VECTORS, "first.3.0": VECTORS, "first.3.1": VECTORS, "second": None},
        input_tree=Tree(
            Kind.TUPLE, (Tree(Kind.TUPLE, (inner,)), Tree(Kind.DICT, (LEAF,), ("second",)))
        ),
        parameters=("first",),
        outputs=[
            OutputSpec("a", VECTORS),
            OutputSpec("size", integer=BATCH),
            OutputSpec("b", VECTORS),
            OutputSpec("nothing"),
        ],
        output_tree=Tree(
            Kind.DICT, (LEAF, Tree(Kind.TUPLE, (LEAF, LEAF)), LEAF), ("a", "pair", "nothing")
        ),
    )
    one, two, three = torch.rand(3, 2, 4)
    result = program({"k": one, 3: [two, three]}, second=None)
    assert list(result) == ["a", "pair", "nothing"]
    assert torch.equal(result["a"], -one)
    assert torch.equal(result["pair"][0], -two)
    assert torch.equal(result["pair"][1], -three)
    assert result["nothing"] is None
    # A dict's order does not matter; its keys, and which kind of sequence it is, do.
    assert torch.equal(program({3: [two, three], "k": one}, second=None)["a"], -one)
    for wrong in ({"k": one}, {"k": one, 3: (two, three)}, {"k": one, 3: [two]}, [one]):
        (violation,) = refused(program, wrong, second=None)
        assert violation.code == "structure"
        assert violation.description.startswith("argument 'first")


def test_an_argument_that_is_also_a_result_is_passed_through() -> None:
    program = program_of(lambda graph, nodes: nodes, outputs=[OutputSpec("out", VECTORS)])
    x = torch.rand(3, 4)
    assert torch.equal(program(x), x)


# Saving and loading -------------------------------------------------------------------------------


def test_a_loaded_program_computes_the_same(tmp_path: Path) -> None:
    program = affine()
    assert program.digest is None
    program.save(tmp_path / "a" / "b.program")
    loaded = load(tmp_path / "a" / "b.program")
    x = torch.rand(5, 4)
    assert torch.equal(loaded(x), program(x))
    assert loaded.contract == program.contract
    assert loaded.digest == program.digest == read_container(tmp_path / "a" / "b.program").digest


def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path: Path) -> None:
    affine().save(tmp_path / "first")
    load(tmp_path / "first").save(tmp_path / "second")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert set(contents(tmp_path / "first")) == {
        "program.pb",
        "weights/weights-00001.safetensors",
    }


def test_a_program_without_weights_has_no_weight_files(tmp_path: Path) -> None:
    program_of(calling(torch.ops.aten.sum.dim_IntList, [1])).save(tmp_path)
    assert set(contents(tmp_path)) == {"program.pb"}
    assert torch.equal(load(tmp_path)(torch.ones(2, 4)), torch.tensor([4.0, 4.0]))


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ProgramError, match="is not empty"):
        affine().save(tmp_path)
    assert contents(tmp_path) == {"notes": b"mine"}


def test_a_file_in_the_place_of_the_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ProgramError, match=r"cannot make the directory .*notes: File exists; "):
        affine().save(tmp_path / "notes")
    assert contents(tmp_path) == {"notes": b"mine"}


STORABLE = [item for item in ScalarType if item is not ScalarType.COMPLEX128]


def test_weights_of_every_dtype_that_files_can_hold_come_back(tmp_path: Path) -> None:
    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        return nodes[:-1]

    weights = {
        item.value: torch.arange(6).reshape(2, 3).to(to_torch(item))
        for item in sorted(STORABLE, key=lambda item: item.value)
    }
    program = program_of(
        build,
        weights=weights,
        outputs=[
            OutputSpec(name, TensorSpec(ScalarType(name), (Constant(2), Constant(3))))
            for name in weights
        ],
        output_tree=Tree(Kind.TUPLE, (LEAF,) * len(weights)),
    )
    program.save(tmp_path)
    for (name, weight), result in zip(
        weights.items(), load(tmp_path)(torch.ones(1, 4)), strict=True
    ):
        assert result.dtype is weight.dtype
        assert torch.equal(result.view(torch.uint8), weight.view(torch.uint8)), name


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(3, dtype=torch.complex128), "of complex128, which safetensors files cannot"),
        (torch.ones(3).to_sparse(), "of layout torch.sparse_coo; weights must be dense"),
        (torch.zeros(3, dtype=torch.uint8).view(torch.float8_e8m0fnu), "float8_e8m0fnu is not"),
    ],
)
def test_weights_that_files_cannot_hold_are_named(
    tmp_path: Path, weight: torch.Tensor, message: str
) -> None:
    program = affine({"bias": weight, "weight": torch.ones(3, 4)})
    with pytest.raises(ProgramError, match=f"the weight 'bias' is .*{message}"):
        program.save(tmp_path)


def test_weights_that_share_memory_or_are_views_are_each_written_whole(tmp_path: Path) -> None:
    block = torch.arange(16.0).reshape(4, 4)
    weights = {
        "a": block,
        "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        "empty": torch.ones(0, 3),
        "flat": block.view(-1),
        "row": block[1],
        "scalar": torch.tensor(7.0),
        "turned": block.t(),
    }
    program = program_of(
        lambda graph, nodes: nodes[:-1],
        weights=weights,
        outputs=[
            OutputSpec(name, TensorSpec(ScalarType(str(weight.dtype).removeprefix("torch.")), ()))
            for name, weight in weights.items()
        ],
        output_tree=Tree(Kind.TUPLE, (LEAF,) * len(weights)),
    )
    program.save(tmp_path)
    for weight, result in zip(weights.values(), load(tmp_path)(torch.ones(1, 4)), strict=True):
        assert torch.equal(weight, result)


def test_weights_on_another_device(tmp_path: Path) -> None:
    affine().save(tmp_path)
    program = load(tmp_path, device="meta")
    assert program(torch.ones(2, 4, device="meta")).device.type == "meta"
    (violation,) = refused(program, torch.ones(2, 4))
    assert violation.description.startswith("input 'x' is on device cpu; allowed: a tensor")


def test_tensors_that_a_graph_makes_are_on_the_programs_device(tmp_path: Path) -> None:
    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        made = graph.call_function(
            torch.ops.aten.ones.default,
            ([4],),
            {"dtype": torch.float32, "device": torch.device("cuda:3"), "pin_memory": False},
        )
        return [graph.call_function(torch.ops.aten.mul.Tensor, (nodes[0], made))]

    program_of(build, outputs=[OutputSpec("out", VECTORS)]).save(tmp_path)
    assert torch.equal(load(tmp_path)(torch.ones(2, 4)), torch.ones(2, 4))
    assert load(tmp_path, "meta")(torch.ones(2, 4, device="meta")).device.type == "meta"


def test_arguments_of_every_kind_come_back(tmp_path: Path) -> None:
    def build(graph: fx.Graph, nodes: list[fx.Node]) -> list[fx.Node]:
        def call(target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
            return graph.call_function(target, args, kwargs)

        aten = torch.ops.aten
        (x,) = nodes
        wide = call(aten.to.dtype, x, torch.float64)
        filled = call(aten.masked_fill.Scalar, wide, call(aten.gt.Scalar, wide, 2), -math.inf)
        joined = call(aten.cat.default, [call(aten.clamp.default, filled, -100), wide], 1)
        last = call(aten.clone.default, joined, memory_format=torch.contiguous_format)
        empty = call(aten.empty_like.default, x, layout=torch.strided, pin_memory=None)
        return [
            call(
                aten.div.Tensor_mode, last, call(aten.full.default, [], 0.5), rounding_mode="floor"
            ),
            call(aten.mul.Scalar, call(aten.zeros_like.default, empty), 2 + 3j),
        ]

    pair = Tree(Kind.TUPLE, (LEAF, LEAF))
    program = program_of(
        build,
        outputs=[
            OutputSpec("a", TensorSpec(ScalarType.FLOAT64, (BATCH, Constant(8)))),
            OutputSpec("b", TensorSpec(ScalarType.COMPLEX64, (BATCH, Constant(4)))),
        ],
        output_tree=pair,
    )
    program.save(tmp_path)
    first, second = load(tmp_path)(torch.tensor([[0.0, 1, 2, 3]]))
    assert first.tolist() == [[0, 2, 4, -200, 0, 2, 4, 6]]
    assert second.dtype is torch.complex64


# Damaged weights ----------------------------------------------------------------------------------

SHARD = "weights/weights-00001.safetensors"


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    affine().save(tmp_path)
    return tmp_path


def rewrite(directory: Path, change: Callable[[pb.WeightsIndex, pb.ProgramGraph], object]) -> None:
    """Writes program.pb again with other weights or another graph, and fitting digests."""
    container = read_container(directory)
    index, graph = container.weights_index(), container.graphs()
    change(index, graph)
    changed = replace(container, weights=index.SerializeToString(), graph=graph.SerializeToString())
    write_container(directory, changed)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda path: path.unlink(), CorruptProgramError, "No such file"),
        (lambda path: os.truncate(path, 40), CorruptProgramError, "have 40 bytes"),
        (lambda path: os.truncate(path, 4000), CorruptProgramError, "have 4000 bytes"),
        (lambda path: (path.unlink(), path.mkdir()), CorruptProgramError, "are not a file"),
        (replace_by_pipe, CorruptProgramError, "are not a file"),
    ],
)
def test_weights_that_are_not_the_files_that_were_written(
    saved: Path, damage: Callable[[Path], object], error: type[ProgramError], message: str
) -> None:
    damage(saved / SHARD)
    with pytest.raises(error, match=message) as caught:
        load(saved)
    assert SHARD in str(caught.value)


def test_verification_is_by_a_name_that_there_is(saved: Path) -> None:
    assert load(saved, verify="sizes").digest == load(saved, verify="full").digest
    with pytest.raises(ValueError, match="verify is 'none'; it may be full or sizes"):
        load(saved, verify="none")  # type: ignore[arg-type]


def test_weights_with_any_one_byte_altered(saved: Path) -> None:
    path = saved / SHARD
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DigestMismatchError, match="SHA-256 differs"):
            load(saved)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../program.pb",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "w\0",
        "../weights/" + SHARD[8:],
    ],
)
def test_a_shard_can_only_be_a_plain_file_beside_the_program(saved: Path, name: str) -> None:
    rewrite(saved, lambda index, graph: setattr(index.shards[0], "file", name))
    with pytest.raises(CorruptProgramError, match="is not a plain file name"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: setattr(index.weights[0], "shard", 1), "a shard that is not listed"),
        (lambda index: setattr(index.weights[0], "name", "other"), "has no weight 'other'"),
        (lambda index: setattr(index.weights[0], "name", "weight"), "two weights have one name"),
        (lambda index: setattr(index.weights[0], "dtype", pb.INT8), "program.pb says torch.int8"),
        (lambda index: setattr(index.weights[0], "dtype", 99), "unknown scalar type"),
        (lambda index: index.weights[0].shape.append(1), r"says torch.float32\[3, 1\]"),
        (lambda index: index.weights.pop(), "neither a weight nor a tensor"),
    ],
)
def test_an_index_that_does_not_fit_the_file(
    saved: Path, change: Callable[[pb.WeightsIndex], object], message: str
) -> None:
    rewrite(saved, lambda index, graph: change(index))
    with pytest.raises(CorruptProgramError, match=message) as caught:
        load(saved)
    assert str(saved) in str(caught.value)


def test_a_shard_that_is_no_safetensors_file(saved: Path) -> None:
    content = b"\xff" * 64
    (saved / SHARD).write_bytes(content)

    def change(index: pb.WeightsIndex, graph: pb.ProgramGraph) -> None:
        index.shards[0].size = len(content)
        index.shards[0].sha256 = hashlib.sha256(content).digest()

    rewrite(saved, change)
    with pytest.raises(CorruptProgramError, match="is not a safetensors file"):
        load(saved)


def test_a_file_of_unlisted_tensors_is_no_harm(saved: Path) -> None:
    path = saved / SHARD
    save_file({"bias": torch.ones(3), "weight": torch.ones(3, 4), "more": torch.ones(1)}, path)

    def change(index: pb.WeightsIndex, graph: pb.ProgramGraph) -> None:
        index.shards[0].size = path.stat().st_size
        index.shards[0].sha256 = hashlib.sha256(path.read_bytes()).digest()

    rewrite(saved, change)
    assert torch.equal(load(saved)(torch.ones(1, 4)), torch.full((1, 3), 5.0))


# Hostile graphs -----------------------------------------------------------------------------------


def _node(graph: pb.ProgramGraph) -> pb.Node:
    return graph.methods[0].nodes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda graph: setattr(_node(graph), "operator", 1), "calls operator 1 of 1"),
        (lambda graph: setattr(_node(graph).arguments[0], "value", 3), "before it is computed"),
        (lambda graph: _node(graph).arguments.add(), "argument of an unknown kind"),
        (lambda graph: setattr(_node(graph).arguments.add(), "dtype", 99), "unknown scalar type"),
        (lambda graph: _node(graph).arguments.add().device.SetInParent(), "an unknown kind"),
        (lambda graph: setattr(_node(graph).arguments.add(), "layout", 7), "an unknown kind"),
        (lambda graph: setattr(_node(graph).arguments.add(), "memory_format", 9), "unknown kind"),
        (lambda graph: graph.methods[0].inputs.add(), "neither a weight nor a tensor"),
        (lambda graph: setattr(graph.methods[0].inputs[2], "input", 5), "neither a weight nor a"),
        (
            lambda graph: graph.methods[0].outputs.add(value=0),
            "promises 1 output, its graph has 2",
        ),
        (lambda graph: graph.methods.add(), "1 contract and 2 graphs"),
    ],
)
def test_a_hostile_graph_is_corrupt(
    saved: Path, change: Callable[[pb.ProgramGraph], object], message: str
) -> None:
    rewrite(saved, lambda index, graph: change(graph))
    with pytest.raises(CorruptProgramError, match=message) as caught:
        load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("part", ["nodes", "inputs", "outputs", "subgraphs"])
@pytest.mark.parametrize("in_subgraph", [False, True])
def test_a_graph_that_is_larger_than_any_is_refused_before_it_is_built(
    saved: Path, part: str, in_subgraph: bool
) -> None:
    def change(index: pb.WeightsIndex, graph: pb.ProgramGraph) -> None:
        large = graph.methods[0].subgraphs.add() if in_subgraph else graph.methods[0]
        items = getattr(large, part)
        items.extend([type(items.add())()] * (2**12 if part == "subgraphs" else 2**18))

    rewrite(saved, change)
    with pytest.raises(CorruptProgramError, match="262144 and 4096 are allowed"):
        load(saved)


def test_a_subgraph_that_several_nodes_run_is_kept_once() -> None:
    def part(target: Callable[..., Any]) -> fx.GraphModule:
        graph = fx.Graph()
        graph.output(graph.call_function(target, (graph.placeholder("x"),)))
        return fx.GraphModule({}, graph)

    root = torch.nn.Module()
    root.negative, root.absolute = (
        part(torch.ops.aten.neg.default),
        part(torch.ops.aten.abs.default),
    )
    graph = fx.Graph(root)  # type: ignore[arg-type]
    x = graph.placeholder("x")
    run = torch.ops.higher_order.wrap_with_set_grad_enabled
    for name in ("negative", "negative", "absolute"):
        x = graph.call_function(run, (False, graph.get_attr(name), x))
    graph.output((x,))
    inputs = {"x": pb.GraphInput(input=0)}
    message = graph_to_proto(graph, inputs, [x], OperatorTable.of_graphs([graph]))
    assert [node.arguments[1].subgraph for node in message.nodes] == [0, 0, 1]
    assert len(message.subgraphs) == 2


def test_a_graph_may_be_as_large_as_is_said() -> None:
    largest = pb.ProgramGraph(methods=[pb.Graph(nodes=[pb.Node()] * 2**18)])
    check_graph_size(largest)
    largest.operators.add()
    with pytest.raises(CorruptProgramError, match="262145 nodes"):
        check_graph_size(largest)


@pytest.mark.parametrize(
    "name", ["", "a b", "class", "out = __import__('os').abort(), x", "a=1", "a,b", "a\n"]
)
def test_the_name_of_an_argument_cannot_smuggle_in_code(saved: Path, name: str) -> None:
    def change(index: pb.WeightsIndex, graph: pb.ProgramGraph) -> None:
        _node(graph).keyword_arguments.add(name=name).value.integer = 1

    rewrite(saved, change)
    with pytest.raises(CorruptProgramError, match="a keyword argument called"):
        load(saved)


def test_strings_in_a_graph_stay_strings(saved: Path) -> None:
    text = "') or __import__('os').abort() #"
    rewrite(saved, lambda index, graph: setattr(_node(graph).arguments[-1], "string", text))
    with pytest.raises(RuntimeError, match="linear"):
        load(saved)(torch.ones(1, 4))


# Operators ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os::system", "is not the name of an operator"),
        ("aten::linear", "is not the name of an operator"),
        ("aten::linear.default.more", "is not the name of an operator"),
        ("aten::__class__.mro", "does not exist"),
        ("python::eval", "is not the name of an operator"),
        ("builtins::eval.default", "may not be called by a program"),
        ("mylib::fast.default", "may not be called by a program; allowed are the namespaces"),
        ("aten::from_file.default", "may not be called by a program"),
        ("aten::from_file.out", "may not be called by a program"),
        ("aten::set_.source_Tensor", "may not be called by a program"),
        ("aten::_padded_dense_to_jagged_forward.default", "may not be called by a program"),
        ("aten::_print.default", "may not be called by a program"),
        ("aten::save.default", "is of TorchScript"),
        ("aten::no_such_operator.default", "does not exist in torch"),
        ("aten::linear.no_such_overload", "does not exist in torch"),
    ],
)
def test_an_operator_that_may_not_be_called_or_is_not_there(
    saved: Path, name: str, message: str
) -> None:
    rewrite(saved, lambda index, graph: setattr(graph.operators[0], "name", name))
    with pytest.raises(OperatorMismatchError, match=message) as caught:
        load(saved)
    assert name in str(caught.value)


def test_no_operator_that_takes_the_name_of_a_file_may_be_called() -> None:
    named = {"filename", "file", "path", "fname", "url", "filepath"}
    names = {
        f"{schema.name}.{schema.overload_name or 'default'}"
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith(("aten::", "prims::"))
        and any(argument.name in named for argument in schema.arguments)
    }
    assert {"aten::from_file.default", "aten::save.default"} <= names
    for name in names:
        with pytest.raises(OperatorMismatchError):
            resolve_operator(name, "")


def test_a_schema_that_has_changed_is_refused(saved: Path) -> None:
    written = (
        "aten::linear(Tensor input, Tensor weight, Tensor? bias=None, *, int gone=0) -> Tensor"
    )
    rewrite(saved, lambda index, graph: setattr(graph.operators[0], "schema", written))
    with pytest.raises(OperatorMismatchError, match=r"'aten::linear' has changed.*int gone=0"):
        load(saved)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "nonsense",
        "aten::linear(",
        f"aten::linear(int x={'9' * 30}) -> Tensor",
        f"aten::linear({'(' * 100_000}int{')' * 100_000} x) -> Tensor",
    ],
)
def test_a_schema_that_cannot_be_read_is_refused(saved: Path, written: str) -> None:
    rewrite(saved, lambda index, graph: setattr(graph.operators[0], "schema", written))
    with pytest.raises(OperatorMismatchError, match="schema of 'aten::linear' cannot be read"):
        load(saved)


def test_a_schema_that_only_lacks_a_newer_optional_argument_is_accepted(saved: Path) -> None:
    written = "aten::linear(Tensor input, Tensor weight) -> Tensor"
    rewrite(saved, lambda index, graph: setattr(graph.operators[0], "schema", written))
    assert load(saved)(torch.ones(1, 4)).shape == (1, 3)


def test_operators_have_the_names_and_schemas_that_torch_gives_them() -> None:
    assert operator_name(torch.ops.aten.add.Tensor) == "aten::add.Tensor"
    assert operator_schema("aten::add.Tensor").startswith("aten::add.Tensor(Tensor self")
    assert operator_schema("python::getitem") == ""
    with pytest.raises(OperatorMismatchError, match="a program cannot call"):
        operator_name(print)


@pytest.mark.parametrize(
    ("target", "argument"), [(print, None), (torch.ops.aten.neg.default, object())]
)
def test_what_the_format_has_no_place_for_is_an_error_at_the_node(
    target: Callable[..., Any], argument: object
) -> None:
    with pytest.raises(GraphEncodingError) as caught:
        program_of(calling(target, *([] if argument is None else [argument])))
    assert caught.value.node.target is target


@pytest.mark.parametrize("place", [0, 1])
def test_a_number_where_a_dtype_belongs_is_refused_at_load(tmp_path: Path, place: int) -> None:
    """Torch takes integers for dtypes, and one that stands for none ends the process."""
    program_of(calling(torch.ops.aten.sum.dim_IntList, [1])).save(tmp_path / "program")
    container = read_container(tmp_path / "program")
    graphs = container.graphs()
    number = pb.Argument(integer=4294967295)
    node = graphs.methods[0].nodes[0]
    if place:
        node.keyword_arguments.add(name="dtype", value=number)
    else:
        node.arguments.extend([pb.Argument(boolean=False), number])
    graph = graphs.SerializeToString(deterministic=True)
    write_container(tmp_path / "program", replace(container, graph=graph))
    with pytest.raises(CorruptProgramError, match="must be a dtype"):
        load(tmp_path / "program")


def test_a_link_out_of_the_directory_is_refused_and_linked_directories_load(tmp_path: Path) -> None:
    affine().save(tmp_path / "program")
    # As Bazel lays out inputs: every file a link to where the program really is.
    for source in (tmp_path / "program").rglob("*"):
        if source.is_file():
            target = tmp_path / "linked" / source.relative_to(tmp_path / "program")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    assert load(tmp_path / "linked").digest
    (tmp_path / "whole").symlink_to(tmp_path / "program")
    assert load(tmp_path / "whole").digest

    (shard,) = (tmp_path / "program/weights").iterdir()
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptProgramError, match="a link out of the program's directory"):
        load(tmp_path / "program")
