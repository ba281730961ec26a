"""`python -m slipway.program`: answers, exit codes, and what it costs to start."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from slipway.program.command_line import main
from slipway.program.container import Container, write_container
from slipway.program.contract import Contract, InputSpec, OutputSpec, Relation, Symbol, TensorSpec
from slipway.program.contract_codec import contract_to_proto
from slipway.program.expressions import Comparison, Constant, Modulo, SymbolReference
from slipway.program.scalar_types import ScalarType
from slipway.program.trees import Kind, Tree
from slipway.proto import program_pb2 as pb

LEAF = Tree(Kind.LEAF)
BATCH, SEQ = SymbolReference(0, "batch"), SymbolReference(1, "seq")
CONTRACT = Contract(
    method="forward",
    symbols=(Symbol("batch", 1, 32), Symbol("seq", 1, 128)),
    inputs=(
        InputSpec("tokens", TensorSpec(ScalarType.INT64, (BATCH, SEQ))),
        InputSpec("scale", TensorSpec(ScalarType.FLOAT32, ())),
        InputSpec("mode", constant="mean"),
    ),
    input_tree=Tree(Kind.TUPLE, (Tree(Kind.TUPLE, (LEAF, LEAF, LEAF)), Tree(Kind.DICT))),
    parameters=("tokens", "scale", "mode"),
    outputs=(
        OutputSpec("embedding", TensorSpec(ScalarType.FLOAT32, (BATCH, Constant(64)))),
        OutputSpec("length", integer=SEQ),
        OutputSpec("nothing"),
    ),
    output_tree=Tree(Kind.TUPLE, (LEAF, LEAF, LEAF)),
    relations=(Relation(Comparison("==", Modulo(SEQ, Constant(8)), Constant(0)), "model.py:12"),),
    batch_symbol=0,
    notes=("not compared with the model for seq = 128: too large",),
)
TEXT = """\
method forward
  inputs
    tokens  int64[batch, seq]
    scale   float32[]
    mode    exactly 'mean'
  outputs
    embedding  float32[batch, 64]
    length     integer seq
    nothing    exactly None
  symbols
    batch  1..32
    seq    1..128
  relations
    seq % 8 == 0  model.py:12
  batch symbol: batch
  note: not compared with the model for seq = 128: too large

graph
  aten::linear.default  3

versions
  container          1.0
  contract language  1.1
  operator dialect   1.0

written by
  slipway  0.1.0
  torch    2.13.0
  python   3.11

sha-256
"""


def write(directory: Path, *contracts: Contract, weights: str = "w") -> Path:
    call = pb.Node(operator=0)
    graph = pb.Graph(nodes=[call, call], subgraphs=[pb.Graph(nodes=[call])])
    methods = [contract_to_proto(contract) for contract in contracts]
    directory.mkdir()
    write_container(
        directory,
        Container(
            contract=pb.ProgramContract(methods=methods).SerializeToString(),
            graph=pb.ProgramGraph(
                operators=[pb.Operator(name="aten::linear.default")], methods=[graph]
            ).SerializeToString(),
            weights=pb.WeightsIndex(shards=[pb.Shard(file=weights)]).SerializeToString(),
            slipway_version="0.1.0",
            torch_version="2.13.0",
            python_version="3.11",
            sources=pb.Sources(
                methods=[
                    pb.MethodSources(relations=[item.source for item in contract.relations])
                    for contract in contracts
                ]
            ).SerializeToString(),
        ),
    )
    return directory


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return write(tmp_path / "old.program", CONTRACT)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


# describe -----------------------------------------------------------------------------------------


def test_describe_says_everything(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "describe", program)
    head, _, digests = text.partition("sha-256\n")
    assert (code, head + "sha-256\n") == (0, TEXT)
    names = [line.split()[0] for line in digests.splitlines()]
    assert names == ["contract", "graph", "weights", "cases", "program"]


def test_a_review_sees_no_change_of_weights_and_lines(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = replace(CONTRACT, relations=(replace(CONTRACT.relations[0], source="model.py:13"),))
    retrained = write(tmp_path / "new.program", moved, weights="other")
    for options in ([], ["--format", "json"]):
        assert run(capsys, "describe", *options, program) != run(
            capsys, "describe", *options, retrained
        )
        assert run(capsys, "describe", "--review", *options, program) == run(
            capsys, "describe", "--review", *options, retrained
        )


def test_describe_writes_to_a_file(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "describe", program, "--output", tmp_path / "text")[:2] == (0, "")
    assert (tmp_path / "text").read_text() == run(capsys, "describe", program)[1]
    code, _, error = run(capsys, "describe", program, "--output", tmp_path / "none/text")
    assert code == 2
    assert error.startswith("slipway: error: cannot write ")


def test_describe_gives_json_and_signatures(
    program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(run(capsys, "describe", "--format", "json", program)[1])
    method = document["methods"]["forward"]
    assert method["inputs"][0] == {"name": "tokens", "dtype": "int64", "shape": ["batch", "seq"]}
    assert method["symbols"]["seq"] == {"minimum": 1, "maximum": 128}
    assert method["relations"] == [{"condition": "seq % 8 == 0", "source": "model.py:12"}]
    assert method["batch_symbol"] == "batch"
    assert document["operators"] == {"aten::linear.default": "3"}
    assert run(capsys, "describe", "--format", "shape", program)[1] == (
        "forward(tokens: int64[batch, seq], scale: float32[], mode: exactly 'mean')"
        " -> (embedding: float32[batch, 64], length: integer seq, nothing: exactly None)\n"
        "  where batch in 1..32, seq in 1..128, seq % 8 == 0\n"
    )


# check --------------------------------------------------------------------------------------------


def test_a_legal_call_gets_its_binding_and_outputs(
    program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "check", program, "--shape", "tokens=3, 16", "--shape", "scale=") == (
        0,
        "legal: a call of forward\n"
        "  batch = 3\n"
        "  seq = 16\n"
        "  gives embedding: float32[3, 64]\n"
        "  gives length: 16\n"
        "  gives nothing: None\n",
        "",
    )


def test_a_refused_call_gets_every_violation_and_a_legal_call(
    program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, _ = run(
        capsys, "check", program, "--shape=tokens=40,12", "--shape=other=1", "--dtype=tokens=int32"
    )
    assert code == 1
    assert text.splitlines() == [
        "refused: a call of forward",
        "  input 'scale' is missing; it must be float32[]",
        "  input 'other' is unknown; the inputs are 'tokens', 'scale'",
        "  input 'tokens': the dtype is int32; allowed: int64",
        "  input 'tokens' dimension 0 (batch) is 40; allowed: 1..32; nearest legal value: 32",
        "  relation seq % 8 == 0 does not hold for seq = 12 (input 'tokens' dimension 1), on which "
        "the model relies at model.py:12; nearest legal value: seq = 8",
        "nearest legal call: --shape tokens=32,8 --shape scale=",
    ]


def test_check_gives_json(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["check", "--format=json", program, "--shape=scale="]
    document = json.loads(run(capsys, *base, "--shape=tokens=3,16")[1])
    assert document == {
        "legal": True,
        "method": "forward",
        "binding": {"batch": 3, "seq": 16},
        "output_shapes": {"embedding": [3, 64]},
    }
    document = json.loads(run(capsys, *base, "--shape=tokens=33,16")[1])
    assert document["violations"][0]["nearest"] == "32"
    assert document["nearest"] == {"tokens": [32, 16], "scale": []}


def test_check_asks_for_a_method_where_there_are_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = [replace(CONTRACT, method=name) for name in ("decode", "encode")]
    program = write(tmp_path / "p.program", *methods)
    shapes = ["--shape=tokens=3,16", "--shape=scale="]
    code, _, error = run(capsys, "check", program, *shapes)
    assert (code, "name one with --method: decode, encode" in error) == (2, True)
    assert run(capsys, "check", program, "--method=encode", *shapes)[0] == 0
    only = write(tmp_path / "only.program", methods[0])
    assert run(capsys, "check", only, *shapes)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shape", "tokens"], "--shape tokens: expected INPUT=…, as in tokens=3,12"),
        (["--shape", "=3"], "--shape =3: expected INPUT=…, as in tokens=3,12"),
        (["--shape", "x=3,"], "--shape x=3,: expected sizes separated by commas, as in 3,12"),
        (["--shape", "x=-1"], "--shape x=-1: expected sizes separated by commas, as in 3,12"),
        (["--shape", "x=٣"], "--shape x=٣: expected sizes separated by commas, as in 3,12"),
        (["--shape", f"x={'1' * 5000}"], "--shape x=1111"),
        (["--shape", "x=1", "--shape", "x=2"], "--shape x=… is given twice"),
        (["--dtype", "x=int8"], "--dtype x=…: there is no --shape x=…"),
        (["--shape", "x=1", "--dtype", "x=int"], "there is no dtype 'int'; there are bool, uint8"),
        (["--method", "decode"], "there is no method 'decode'; name one with --method: forward"),
        (["--bad"], "unrecognized arguments: --bad"),
    ],
)
def test_a_wrong_command_is_said_to_be_wrong(
    arguments: Sequence[str], sentence: str, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, error = run(capsys, "check", program, *arguments)
    assert (code, text) == (2, "")
    assert error.startswith(f"slipway: error: {sentence}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [["describe"], ["check"], ["baseline"], ["diff", "x"]])
def test_a_path_without_a_program_is_a_usage_error(
    command: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, error = run(capsys, *command, tmp_path / "none")
    assert (code, text) == (2, "")
    assert "none" in error or "cannot read" in error
    assert error.count("\n") == 1


def test_without_a_command_there_is_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys)
    assert (code, "--help` explains" in error) == (2, True)


def written_to(output: IO[str], *command: str | Path) -> tuple[int, str]:
    """Runs a command as a process, and returns its exit code and what it writes to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "slipway.program", *command],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONUNBUFFERED": "",  # else nothing is left to be written at the end
        },
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("describe {}", 0),
        ("check {} --shape x=1", 1),
        ("check {} --shape x=1 --format json", 1),
    ],
)
def test_a_reader_that_has_read_enough_is_no_error(command: str, code: int, program: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        assert written_to(closed, *command.format(program).split()) == (code, "")


@pytest.mark.parametrize("command", ["describe {}", "check {}", "diff {0} {0}", "baseline {}"])
def test_an_output_that_takes_nothing_is_no_answer(command: str, program: Path) -> None:
    """As that of a full disk: exit code 1 would say that the answer is no."""
    with open("/dev/full", "w") as full:
        assert written_to(full, *command.format(program).split()) == (
            2,
            "slipway: error: cannot write to standard output: No space left on device\n",
        )


# baseline and diff --------------------------------------------------------------------------------


def test_a_baseline_stands_for_its_program(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = tmp_path / "contract.json"
    baseline.write_text(run(capsys, "baseline", program)[1], encoding="utf-8")
    for old, new in ((baseline, program), (program, baseline), (baseline, baseline)):
        code, text, _ = run(capsys, "diff", "--python", old, new)
        assert code == 0
        assert {line.split()[0] for line in text.splitlines()[1:-2]} == {"unchanged"}
    assert (
        run(capsys, "describe", "--format=shape", baseline)[1]
        == run(capsys, "describe", "--format=shape", program)[1]
    )
    assert run(capsys, "describe", program / "program.pb") == run(capsys, "describe", program)


def test_diff_says_whether_clients_break(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = replace(CONTRACT, symbols=(Symbol("batch", 0, 64), Symbol("seq", 1, 128)))
    new = write(tmp_path / "new.program", wider)
    code, text, _ = run(capsys, "diff", program, new)
    assert code == 0
    assert (
        "  widened       input 'tokens' dimension 0: batch in 1..32 -> batch in 0..64; "
        "now allowed: batch = 0\n"
    ) in text
    assert text.endswith(
        "\ncompatible: every call that was allowed is allowed, and its results have the same "
        "names, dtypes and shapes\n"
    )
    code, text, _ = run(capsys, "diff", new, program)
    assert code == 1
    assert text.endswith("\nbreaks existing clients: 1 clause narrowed\n")
    code, text, _ = run(capsys, "diff", "--format=json", new, program)
    document = json.loads(text)
    assert (code, document["compatible"]) == (1, False)
    assert document["methods"]["forward"][1]["verdict"] == "narrowed"


def test_diff_counts_what_only_python_sees_if_told_to(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = replace(CONTRACT, output_tree=Tree(Kind.LIST, (LEAF, LEAF, LEAF)))
    new = write(tmp_path / "new.program", listed)
    assert run(capsys, "diff", program, new)[0] == 0
    code, text, _ = run(capsys, "diff", "--python", program, new)
    assert code == 1
    assert (
        "results in Python: (value, value, value) -> [value, value, value]; "
        "results are nested in another way\n"
    ) in text


# What it costs ------------------------------------------------------------------------------------

_RUN = """
import sys
from slipway.program.command_line import main
code = main(sys.argv[1:])
if "torch" in sys.modules or "numpy" in sys.modules:
    sys.exit("it imported torch or numpy")
sys.exit(code)
"""


@pytest.mark.parametrize(
    "command",
    [
        "describe {0}",
        "check {0} --shape tokens=3,16 --shape scale=",
        "check {0} --shape x=1",
        "diff {0} {0}",
        "baseline {0}",
    ],
)
def test_a_command_takes_a_fraction_of_a_second_and_no_torch(command: str, program: Path) -> None:
    arguments = command.format(program).split()
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", _RUN, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (done.returncode, done.stderr) == (1 if "x=1" in command else 0, "")
        # Of the processor, and not of the clock: other tests run at the same time.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3
