"""Compiled code from Python: what it does, when it is used, and what it would do by itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slipway.program import ContractViolation, Program, load, verify
from slipway.program.compiled import use_compiled, use_graphs
from slipway.program.container import read_container
from slipway.program.errors import CompiledCodeError
from slipway.proto import program_pb2 as pb
from slipway.tests.compiled.program_path import TARGET, program_path

# Calls that break the contract, and what bare code makes of them, in Python.
_BREAKING = {
    "margins that are too short, beyond whose end it reads": (
        torch.zeros(4, 4, dtype=torch.int64),
        torch.ones(3),
        "len(doubled) == 9",
    ),
    "margins of another dtype, which it takes for floating-point numbers": (
        torch.zeros(4, 4, dtype=torch.int64),
        torch.ones(9, dtype=torch.int32),
        "not torch.equal(doubled.to(torch.int32), margins * 2 + 1)",
    ),
    "tokens of another length, which it reads across rows": (
        torch.arange(20).reshape(4, 5),
        torch.ones(9),
        "torch.equal(scores, run(torch.arange(16).reshape(4, 4), torch.ones(9))[0])",
    ),
}

_BARE = """
import sys
import torch
from slipway.program import load

path, library, call = sys.argv[1:]
runner = torch._C._aoti.AOTIModelContainerRunnerCpu(library, 1)
weights = load(path).weights
names = runner.get_constant_names_to_original_fqns()
constants = {own: weights[name] for own, name in names.items()}
runner.update_constant_buffer(constants, False, True, True)

def run(*tensors):
    return runner.run(list(tensors))

tokens, margins = torch.load(call)
scores, doubled = run(tokens, margins)
assert CLAIM, (scores, doubled)
"""


@pytest.fixture
def program() -> Program:
    program = load(program_path())
    execution = use_compiled(program, program_path())
    assert execution.target == TARGET
    return program


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the program that a test may change."""
    target = tmp_path / "ranker.program"
    shutil.copytree(program_path(), target, copy_function=shutil.copyfile)
    return target


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 64])
def test_it_does_what_the_graph_does(program: Program, batch: int) -> None:
    tokens = torch.randint(0, 100, (batch, 4))
    margins = torch.randn(2 * batch + 1)
    compiled = program(tokens, margins)
    use_graphs(program)
    torch.testing.assert_close(compiled, program(tokens, margins))


def test_the_cases_hold(program: Program) -> None:
    assert verify(program)


def test_tensors_may_lie_in_memory_in_any_way(program: Program) -> None:
    tokens = torch.randint(0, 100, (4, 5)).T.contiguous().T[:, 1:]
    margins = torch.randn(18)[::2]
    assert not tokens.is_contiguous() and not margins.is_contiguous()
    compiled = program(tokens, margins)
    use_graphs(program)
    torch.testing.assert_close(compiled, program(tokens, margins))


def test_gradients_are_computed_by_the_graph(program: Program) -> None:
    margins = torch.ones(3, requires_grad=True)
    program(torch.zeros(1, 4, dtype=torch.int64), margins)[1].sum().backward()
    assert margins.grad is not None and margins.grad.tolist() == [2.0, 2.0, 2.0]


def test_values_that_the_model_cannot_take_are_refused_as_the_graph_does(program: Program) -> None:
    torch.set_num_threads(2)
    try:
        with pytest.raises(IndexError, match="index out of range"):
            program(torch.full((64, 4), 1000), torch.ones(129))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", _BREAKING)
def test_the_contract_refuses_what_bare_code_gets_wrong(
    program: Program, name: str, tmp_path: Path
) -> None:
    tokens, margins, claim = _BREAKING[name]
    with pytest.raises(ContractViolation):
        program(tokens, margins)
    torch.save([tokens, margins], tmp_path / "call.pt")
    library = program_path() / "compiled" / TARGET / "method-0.so"
    arguments = [program_path(), library, tmp_path / "call.pt"]
    # A process of its own: it may read beyond the end of an input.
    result = subprocess.run(
        [sys.executable, "-c", _BARE.replace("CLAIM", claim), *arguments],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_it_belongs_to_the_program_without_being_part_of_its_identity(copied: Path) -> None:
    target = _read(copied)
    assert target.program.hex() == read_container(copied).digest == load(copied).digest
    assert "g++" in target.compiler or "gcc" in target.compiler.lower()
    shutil.rmtree(copied / "compiled")
    assert load(copied).digest == target.program.hex()
    with pytest.raises(CompiledCodeError, match="has no compiled code"):
        use_compiled(load(copied), copied)


def test_it_names_no_folder_of_the_machine_that_made_it() -> None:
    library = (program_path() / "compiled" / TARGET / "method-0.so").read_bytes()
    assert b"model_container.h" in library
    assert not re.findall(rb"(?<![\w.])/[\w./-]+/[\w.-]+\.(?:cpp|hpp|h)\b", library)


def test_altered_code_is_never_loaded(copied: Path) -> None:
    path = copied / "compiled" / TARGET / "method-0.so"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CompiledCodeError, match=r"SHA-256 differs"):
        use_compiled(load(copied), copied)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("torch_version", "2.12.0", r"needs torch 2\.12\.0"),
        ("program", b"\0" * 32, "compiled from another program"),
        ("device", "cuda", "is for cuda; the program is on cpu"),
        ("instruction_set", "amx", "'amx' is unknown"),
    ],
)
def test_code_for_something_else_is_not_used(
    copied: Path, field: str, value: object, message: str
) -> None:
    target = _read(copied)
    setattr(target, field, value)
    _write(copied, target)
    program = load(copied)
    with pytest.raises(CompiledCodeError, match=f"{TARGET}: .*{message}"):
        use_compiled(program, copied)
    assert program.methods["forward"].engine is None


def test_a_library_outside_the_folder_is_refused(copied: Path) -> None:
    target = _read(copied)
    target.methods[0].library.file = "../../method-0.so"
    _write(copied, target)
    with pytest.raises(CompiledCodeError, match="not a plain file name"):
        use_compiled(load(copied), copied)


def _read(program: Path) -> pb.CompiledTarget:
    path = program / "compiled" / TARGET / "compiled.pb"
    return pb.CompiledTarget.FromString(path.read_bytes())


def _write(program: Path, target: pb.CompiledTarget) -> None:
    path = program / "compiled" / TARGET / "compiled.pb"
    path.write_bytes(target.SerializeToString())
