"""The graph of a program in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slipway.program.command_line import main
from slipway.program.container import Container, write_container
from slipway.program.contract import Contract, InputSpec, OutputSpec, TensorSpec
from slipway.program.contract_codec import contract_to_proto
from slipway.program.errors import CorruptProgramError
from slipway.program.expressions import Constant
from slipway.program.graph_text import graph_text
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

LEAF = Tree(Kind.LEAF)
SPEC = TensorSpec(ScalarType.FLOAT32, (Constant(3),))
CONTRACT = Contract(
    method="forward",
    symbols=(),
    inputs=(InputSpec("x", SPEC),),
    input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF,)), Tree(Kind.DICT))),
    parameters=("x",),
    outputs=(OutputSpec("y", SPEC),),
    output_tree=LEAF,
)
OPERATORS = ["aten::add.Tensor", "aten::full.default", "control::cond"]


def value(number: int) -> pb.Argument:
    return pb.Argument(value=number)


def listed(*arguments: pb.Argument) -> pb.Argument:
    return pb.Argument(list=pb.Argument.Arguments(arguments=arguments))


GRAPH = pb.Graph(
    inputs=[pb.GraphInput(input=0), pb.GraphInput(weight=0)],
    nodes=[
        pb.Node(
            operator=0,
            arguments=[value(0), value(1)],
            keyword_arguments=[
                pb.KeywordArgument(name="alpha", value=pb.Argument(integer=2)),
            ],
        ),
        pb.Node(
            operator=1,
            arguments=[
                listed(pb.Argument(integer=3), pb.Argument(none=pb.Nothing())),
                pb.Argument(floating=0.5),
                pb.Argument(boolean=True),
                pb.Argument(complex=pb.Argument.Complex(real=1, imaginary=2)),
                pb.Argument(string="a\nb"),
            ],
            keyword_arguments=[
                pb.KeywordArgument(name="device", value=pb.Argument(device=pb.Device())),
                pb.KeywordArgument(name="dtype", value=pb.Argument(dtype=pb.INT64)),
                pb.KeywordArgument(name="layout", value=pb.Argument(layout=pb.STRIDED)),
                pb.KeywordArgument(
                    name="memory_format", value=pb.Argument(memory_format=pb.PRESERVE)
                ),
            ],
        ),
        pb.Node(operator=2, arguments=[pb.Argument(subgraph=0), listed(value(2))]),
    ],
    outputs=[value(4)],
    subgraphs=[
        pb.Graph(
            inputs=[pb.GraphInput(operand=0)],
            nodes=[pb.Node(operator=0, arguments=[value(0), value(0)])],
            outputs=[value(1)],
        )
    ],
    mutated_inputs=[1],
)
SOURCES = pb.MethodSources(positions=["models/it.py:7", "models/it.py:9"], nodes=[0, 2, 1])
TEXT = """\
method forward
  %0 = input x
  %1 = weight scale: float32[3, 1]  (changed in place)
  %2 = aten::add.Tensor(%0, %1, alpha=2)  # models/it.py:7
  %3 = aten::full.default([3, None], 0.5, True, (1+2j), 'a\\nb', device=device, dtype=int64, \
layout=strided, memory_format=preserve)
  %4 = control::cond(subgraph 0, [%2])  # models/it.py:9
  return %4
  subgraph 0
    %0 = operand 0
    %1 = aten::add.Tensor(%0, %0)
    return %1
"""


def container(graph: pb.Graph = GRAPH) -> Container:
    return Container(
        contract=pb.ProgramContract(methods=[contract_to_proto(CONTRACT)]).SerializeToString(),
        graph=pb.ProgramGraph(
            operators=[pb.Operator(name=name) for name in OPERATORS], methods=[graph]
        ).SerializeToString(),
        weights=pb.WeightsIndex(
            weights=[pb.Weight(name="scale", dtype=pb.FLOAT32, shape=[3, 1])]
        ).SerializeToString(),
        slipway_version="0.1.0",
        torch_version="2.13.0",
        python_version="3.11",
        sources=pb.Sources(methods=[SOURCES]).SerializeToString(),
    )


def test_each_node_is_a_line_with_its_position() -> None:
    assert graph_text(container()) == TEXT


def test_sources_may_be_dropped() -> None:
    without = "".join(line.split("  # ")[0].rstrip("\n") + "\n" for line in TEXT.splitlines())
    assert graph_text(replace(container(), sources=b"")) == without


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (pb.Graph(nodes=[pb.Node(operator=3)]), "refers to operator 3; there are 3"),
        (pb.Graph(inputs=[pb.GraphInput(input=1)]), "refers to input 1; there are 1"),
        (pb.Graph(inputs=[pb.GraphInput(weight=9)]), "refers to weight 9; there are 1"),
        (pb.Graph(outputs=[pb.Argument(layout=7)]), "unknown kind: 7"),  # type: ignore[arg-type]
        (pb.Graph(outputs=[pb.Argument(memory_format=7)]), "unknown kind: 7"),  # type: ignore[arg-type]
    ],
)
def test_a_graph_that_refers_to_nothing_is_corrupt(graph: pb.Graph, message: str) -> None:
    with pytest.raises(CorruptProgramError, match=message):
        graph_text(container(graph))


def test_the_command_line_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_container(tmp_path, container())
    assert main(["graph", str(tmp_path)]) == 0
    assert capsys.readouterr().out == TEXT
    assert main(["graph", str(tmp_path), f"--output={tmp_path / 'graph.txt'}"]) == 0
    assert (tmp_path / "graph.txt").read_text(encoding="utf-8") == TEXT


def test_a_manifest_lists_programs_with_their_digests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_container(tmp_path, container())
    digest = container().digest
    assert main(["manifest", f"it/1,//a:b,{tmp_path}", f"other/22,//a:b.c,{tmp_path}"]) == 0
    assert capsys.readouterr().out == (
        f"it/1      //a:b    {digest}\nother/22  //a:b.c  {digest}\n"
    )
    folder = tmp_path / "with,a comma"
    folder.mkdir()
    write_container(folder, container())
    assert main(["manifest", f"it/1,//a:b,{folder}"]) == 0
    assert main(["manifest", f"it/1\t//a:b,c\t{folder}"]) == 0
    assert capsys.readouterr().out == f"it/1  //a:b  {digest}\nit/1  //a:b,c  {digest}\n"
    assert main(["manifest", "it/1"]) == 2
    assert "it/1: expected PLACE,LABEL,PROGRAM" in capsys.readouterr().err
    assert main(["manifest", "it/1,//a:b,nowhere"]) == 2
    assert "cannot read" in capsys.readouterr().err
