"""What a torch_program_test finds: damage, broken promises, and calls that fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import fx

from slipway.program import Program
from slipway.program.container import read_container, write_container
from slipway.program.contract import Contract, InputSpec, OutputSpec, Relation, Symbol, TensorSpec
from slipway.program.corners import corner_bindings
from slipway.program.errors import DigestMismatchError
from slipway.program.expressions import Comparison, Constant, Modulo, SymbolReference
from slipway.program.graph_codec import OperatorTable, graph_to_proto
from slipway.program.scalar_types import ScalarType
from slipway.program.self_check import SelfCheckError, self_check
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

LEAF = Tree(Kind.LEAF)
BATCH = SymbolReference(0, "batch")


def contract(largest: int | None = 8) -> Contract:
    rows = TensorSpec(ScalarType.FLOAT32, (BATCH, Constant(4)))
    return Contract(
        method="forward",
        symbols=(Symbol("batch", 0, largest),),
        inputs=(InputSpec("x", rows),),
        input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF,)), Tree(Kind.DICT))),
        parameters=("x",),
        outputs=(OutputSpec("y", rows),),
        output_tree=LEAF,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A program that adds a weight of four elements to each row."""
    graph = fx.Graph()
    weight, x = graph.placeholder("weight"), graph.placeholder("x")
    result = graph.call_function(torch.ops.aten.add.Tensor, (x, weight))
    graph.output((result,))
    operators = OperatorTable.of_graphs([graph])
    places = {"weight": pb.GraphInput(weight=0), "x": pb.GraphInput(input=0)}
    message = pb.ProgramGraph(
        operators=operators.to_proto(), methods=[graph_to_proto(graph, places, [result], operators)]
    )
    weights = {"bias": torch.ones(4)}
    program = Program({"forward": contract()}, message, weights, device=torch.device("cpu"))
    program.save(tmp_path / "p.program")
    return tmp_path / "p.program"


def with_contract(directory: Path, change: Callable[[pb.Contract], object]) -> None:
    """Rewrites the program with another contract than its graph keeps, digests and all."""
    container = read_container(directory)
    message = pb.ProgramContract.FromString(container.contract)
    change(message.methods[0])
    changed = {
        name: getattr(container, name)
        for name in container.__dataclass_fields__
        if name != "contract"
    }
    write_container(directory, type(container)(contract=message.SerializeToString(), **changed))


def test_a_good_program_is_called_at_its_corners(directory: Path) -> None:
    lines = list(self_check(directory))
    assert lines[0].startswith("loaded, and digests verified: ")
    assert lines[1] == "cases: 0 run, 0 of them with results to compare"
    assert {"forward: batch = 0: fine", "forward: batch = 8: fine"} <= set(lines)


def test_damaged_weights_are_found(directory: Path) -> None:
    weights = directory / "weights/weights-00001.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DigestMismatchError, match="SHA-256 differs"):
        list(self_check(directory))


def promise_five(message: pb.Contract) -> None:
    message.outputs[0].tensor.shape[1].constant = 5


def promise_integers(message: pb.Contract) -> None:
    message.outputs[0].tensor.dtype = pb.INT64


def allow_threes(message: pb.Contract) -> None:
    message.inputs[0].tensor.shape[1].constant = 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (promise_five, r"for batch = 0: output 'y' is torch.float32\[0, 4\]; promised is float32"),
        (promise_integers, r"promised is int64\[batch, 4\]"),
        (allow_threes, "method 'forward' fails for batch = 0, which its contract allows: Runtime"),
    ],
)
def test_a_broken_promise_is_found(
    change: Callable[[pb.Contract], object], sentence: str, directory: Path
) -> None:
    with_contract(directory, change)
    with pytest.raises(SelfCheckError, match=sentence):
        list(self_check(directory))


def test_corners_are_legal_small_and_include_both_ends() -> None:
    bindings = list(corner_bindings(contract(), 1 << 20))
    assert bindings[:2] == [(0,), (8,)]
    assert set(bindings) == {(size,) for size in range(9)}
    # 4 columns: up to 25 rows have 100 elements.
    assert max(corner_bindings(contract(None), 100)) <= (25,)
    assert list(corner_bindings(contract(), -1)) == []


def test_corners_satisfy_relations() -> None:

    odd = Relation(Comparison("==", Modulo(BATCH, Constant(2)), Constant(1)))
    bindings = set(corner_bindings(replace(contract(), relations=(odd,)), 1 << 20))
    assert bindings == {(1,), (3,), (5,), (7,)}
