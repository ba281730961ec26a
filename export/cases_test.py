"""Cases that travel with a program."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slipway.export import Dim, export
from slipway.program import (
    CaseFailedError,
    CorruptProgramError,
    DigestMismatchError,
    Program,
    load,
    verify,
)
from slipway.program.cases import AnsweredCase, RefusedCase, difference
from slipway.program.container import read_container, write_container
from slipway.program.interpreter import use_interpreter
from slipway.program.shards import file_digest

ROWS = Dim("rows", min=1, max=6)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).eval()
    export(model, torch.randn(4, 3), dynamic_shapes=({0: ROWS},)).save(tmp_path / "program")
    return tmp_path / "program"


def rewrite(directory: Path, change: float) -> Program:
    """Adds to every tensor of the cases, with digests that fit, and loads the program."""
    path = directory / "cases/cases.safetensors"
    save_file({key: value + change for key, value in load_file(path).items()}, path)
    container = read_container(directory)
    cases = container.cases_index()
    cases.tensors.size = path.stat().st_size
    cases.tensors.sha256 = file_digest(path)
    write_container(directory, replace(container, cases=cases.SerializeToString()))
    return load(directory)


def test_a_program_has_answered_and_refused_cases_and_passes_them(directory: Path) -> None:
    program = load(directory)
    answered = [case for case in program.cases if isinstance(case, AnsweredCase)]
    refused = [case for case in program.cases if isinstance(case, RefusedCase)]
    sizes = [next(iter(case.inputs.values())).shape[0] for case in answered]
    assert sizes[0] == 4
    assert 1 in sizes
    assert sorted(shape[0] for case in refused for _, shape in case.inputs.values()) == [0, 7]
    results = verify(program)
    assert len(results) == len(answered) == 3
    assert all(result.absolute_error < 1e-6 for result in results)


def test_whoever_may_read_a_new_file_may_read_a_program(directory: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.touch()
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".pb", ".safetensors"}
    assert {path.name: path.stat().st_mode for path in files} == {
        path.name: new.stat().st_mode for path in files
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_calls_whose_rounding_the_model_magnifies_are_no_cases(dtype: torch.dtype) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return (1e5 * x).sin()

    example = torch.tensor([0.0, 0.7, 0.3, 2.5], dtype=dtype)
    program = export(model, example, dynamic_shapes=({0: ROWS},))
    answered = [case for case in program.cases if isinstance(case, AnsweredCase)]
    assert [case.inputs["x"].tolist() for case in answered] == [[0.0]]
    assert sorted(program.contract.notes) == [
        f"no case for rows = {rows}: the model magnifies rounding" for rows in range(3, 7)
    ]


def test_whole_numbers_are_not_rounded() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.floor()

    program = export(model, torch.arange(4.0), dynamic_shapes=({0: ROWS},))
    assert any(isinstance(case, AnsweredCase) for case in program.cases)
    assert not program.contract.notes
    other = export(model, torch.tensor([0.5, 2.9999998]))
    assert not any(isinstance(case, AnsweredCase) for case in other.cases)
    assert other.contract.notes == ("no case: the model magnifies rounding",)


def test_a_case_stays_where_the_model_refuses_inputs_that_are_rounded_otherwise() -> None:
    table = torch.tensor([1.0, 2.0])

    def model(x: torch.Tensor) -> torch.Tensor:
        # Of what is more than a half there is none.
        return table[(2 * x).ceil().long()]

    program = export(model, torch.full((9,), 0.5))
    assert any(isinstance(case, AnsweredCase) for case in program.cases)


def test_an_answer_that_is_not_what_it_must_be_is_named(directory: Path) -> None:
    with pytest.raises(
        CaseFailedError, match=r"case 0 .*output 'output' differs by up to .*; if that"
    ):
        verify(rewrite(directory, 0.5))


def test_a_case_that_must_be_refused_and_is_not_is_named(directory: Path) -> None:
    container = read_container(directory)
    cases = container.cases_index()
    for case in cases.cases:
        if case.HasField("refused"):
            case.refused.inputs[0].shape[0] = 5
    write_container(directory, replace(container, cases=cases.SerializeToString()))
    with pytest.raises(CaseFailedError, match="must be refused"):
        verify(load(directory))


def test_damaged_cases_are_refused_when_they_are_read(directory: Path) -> None:
    program = load(directory)
    path = directory / "cases/cases.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestMismatchError):
        verify(program)
    path.unlink()
    with pytest.raises(CorruptProgramError, match="cannot read the cases"):
        verify(program)


def test_state_is_what_it_was_after_the_cases(tmp_path: Path) -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x + self.calls

    export(Counter(), torch.ones(2)).save(tmp_path / "program")
    program = load(tmp_path / "program")
    verify(program)
    verify(program)
    assert program(torch.zeros(2)).tolist() == [1, 1]


def test_a_spec_may_want_none(tmp_path: Path) -> None:
    export(torch.nn.ReLU(), torch.ones(2), cases=0).save(tmp_path / "program")
    assert not (tmp_path / "program/cases").exists()
    assert verify(load(tmp_path / "program")) == []


def test_what_is_no_number_or_infinite_must_be_just_that(tmp_path: Path) -> None:
    x = torch.tensor([[1.0, -1.0, 0.0], [4.0, 2.0, 0.0]])
    program = export(lambda x: x.sqrt() / x, x, dynamic_shapes={"x": {0: ROWS}})
    assert x.sqrt().div(x).isnan().any()
    results = verify(program)
    assert all(result.absolute_error == result.relative_error == 0 for result in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize(
    ("actual", "expected", "is_same"),
    [
        (math.nan, math.nan, True),
        (math.inf, math.inf, True),
        (-math.inf, -math.inf, True),
        (5.0, math.inf, False),
        (5.0, -math.inf, False),
        (5.0, math.nan, False),
        (math.inf, -math.inf, False),
        (math.inf, 5.0, False),
        (math.nan, 5.0, False),
        (math.nan, math.inf, False),
    ],
)
def test_only_the_same_is_near_what_is_not_finite(
    actual: float, expected: float, is_same: bool, dtype: torch.dtype
) -> None:
    found = torch.tensor([1.0, actual], dtype=dtype)
    wanted = torch.tensor([1.0, expected], dtype=dtype)
    if is_same:
        assert difference(found, wanted, 1, "x") == (0, 0)
        return
    with pytest.raises(CaseFailedError, match="x differs"):
        difference(found, wanted, 1, "x")


@pytest.mark.parametrize(("largest", "allowed"), [(0.0, 1e-5), (1.0, 1e-5), (-200.0, 2e-3)])
def test_how_near_a_small_number_is_depends_on_the_largest(largest: float, allowed: float) -> None:
    wanted = torch.tensor([largest, 0.0, math.inf])
    near, far = (torch.tensor([largest, part * allowed, math.inf]) for part in (0.9, 1.1))
    assert difference(near, wanted, 1, "x")[0] == pytest.approx(0.9 * allowed)
    with pytest.raises(CaseFailedError, match=f"allowed: {allowed:g} and 0.0001 of the value"):
        difference(far, wanted, 1, "x")


def test_a_call_that_the_engine_refuses_starts_from_what_it_was_given() -> None:
    embedding = torch.nn.Embedding(10, 3)

    def model(tokens: torch.Tensor) -> torch.Tensor:
        tokens.sub_(1)
        result: torch.Tensor = embedding(tokens)
        return result

    program = export(model, torch.ones(2, 3, dtype=torch.int64))
    assert use_interpreter(program) == []
    for first in (11, 0):  # one further, either way, would be an element
        tokens = torch.tensor([[first, 2, 3], [1, 2, 3]])
        with pytest.raises(IndexError):
            program(tokens)
        assert tokens.tolist() == [[first - 1, 1, 2], [0, 1, 2]]
