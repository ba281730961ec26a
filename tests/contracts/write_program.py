"""Writes a program without capture, with a contract as the command line says.

Usage: write_program.py OUTPUT LARGEST_BATCH WEIGHTS

WEIGHTS is any text: programs that differ in nothing else have other weights.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from slipway.program.container import Container, write_container
from slipway.program.contract import Contract, InputSpec, OutputSpec, Relation, Symbol, TensorSpec
from slipway.program.contract_codec import contract_to_proto
from slipway.program.expressions import Comparison, Constant, Modulo, SymbolReference
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

LEAF = Tree(Kind.LEAF)
BATCH, SEQ = SymbolReference(0, "batch"), SymbolReference(1, "seq")


def contract(largest_batch: int) -> Contract:
    return Contract(
        method="forward",
        symbols=(Symbol("batch", 1, largest_batch), Symbol("seq", 8, 128)),
        inputs=(
            InputSpec("tokens", TensorSpec(ScalarType.INT64, (BATCH, SEQ))),
            InputSpec("mask", TensorSpec(ScalarType.BOOL, (BATCH, SEQ))),
        ),
        input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF, LEAF)), Tree(Kind.DICT))),
        parameters=("tokens", "mask"),
        outputs=(OutputSpec("scores", TensorSpec(ScalarType.FLOAT32, (BATCH, Constant(10)))),),
        output_tree=LEAF,
        relations=(
            Relation(
                Comparison("==", Modulo(SEQ, Constant(8)), Constant(0)), "models/ranker.py:12"
            ),
        ),
        batch_symbol=0,
    )


def main(output: str, largest_batch: str, weights: str) -> None:
    contracts = pb.ProgramContract(methods=[contract_to_proto(contract(int(largest_batch)))])
    graph = pb.ProgramGraph(
        operators=[pb.Operator(name="aten::linear.default")],
        methods=[pb.Graph(nodes=[pb.Node(operator=0)])],
    )
    shard = pb.Shard(file="w", sha256=hashlib.sha256(weights.encode()).digest())
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    write_container(
        directory,
        Container(
            contract=contracts.SerializeToString(deterministic=True),
            graph=graph.SerializeToString(deterministic=True),
            weights=pb.WeightsIndex(shards=[shard]).SerializeToString(deterministic=True),
            slipway_version="0.1.0",
            torch_version="2.13.0",
            python_version="3.11",
            sources=pb.Sources(
                methods=[pb.MethodSources(relations=["models/ranker.py:12"])]
            ).SerializeToString(deterministic=True),
        ),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
