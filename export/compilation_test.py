from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slipway.export import export
from slipway.export.compilation import (
    CompilationError,
    compile_program,
    obstacle,
)
from slipway.program import DataViolation

_NOWHERE = Path("/nowhere/g++")


class _Counter(torch.nn.Module):
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x + self.count


def _sizes(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    return x + 1, x.shape[0]


def _asserts(x: torch.Tensor) -> torch.Tensor:
    torch._check(x.sum().item() > 0)  # type: ignore[no-untyped-call]
    return x + 1


def _overwrites(x: torch.Tensor) -> torch.Tensor:
    return x.add_(1)


def _option(x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
    return x * scale


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_Counter(), "changes its weights or its inputs"),
        (_asserts, "asserts something of values"),
        (_overwrites, "changes its weights or its inputs"),
    ],
)
def test_what_cannot_be_compiled_says_why(
    model: torch.nn.Module | Callable[..., object], reason: str, tmp_path: Path
) -> None:
    program = export(model, torch.ones(2, 3))
    assert reason in (obstacle(program, "forward") or "")
    program.save(tmp_path / "program")
    with pytest.raises(CompilationError, match=f"{re.escape(reason)}.*; leave out compile"):
        compile_program(program, tmp_path / "program", compiler=_NOWHERE, work=tmp_path / "work")
    assert not (tmp_path / "program" / "compiled").exists()


@torch.library.custom_op("compilation_test::twice", mutates_args=())
def _twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@_twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_methods_that_call_custom_operators_stay_with_the_graph() -> None:
    program = export(lambda x: _twice(x), torch.ones(2), custom_ops=["compilation_test"])
    reason = obstacle(program, "forward") or ""
    assert reason.startswith("calls compilation_test::twice.default, which the compiled code has")


def test_sizes_and_other_arguments_stay_with_the_graph() -> None:
    sizes = export(_sizes, torch.ones(2, 3), dynamic_shapes={"x": {0: torch.export.Dim("n")}})
    assert "returns sizes" in (obstacle(sizes, "forward") or "")
    option = export(_option, (torch.ones(2, 3), 3.0))
    assert "no tensors" in (obstacle(option, "forward") or "")


def test_bags_that_begin_where_values_say_stay_with_the_graph() -> None:
    def bags(items: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding_bag(items, torch.ones(9, 2), offsets, mode="sum")

    program = export(bags, (torch.tensor([1, 2, 3]), torch.tensor([0, 2])))
    assert "where bags begin" in (obstacle(program, "forward") or "")
    with pytest.raises(DataViolation, match="a bag or segment that ends before it begins"):
        program(torch.tensor([1, 2, 3]), torch.tensor([0, -3]))


@pytest.mark.parametrize("kind", [torch.nn.GRU, torch.nn.RNN])
def test_recurrent_layers_that_the_compiler_takes_apart_stay_with_the_graph(
    kind: type[torch.nn.RNNBase],
) -> None:
    program = export(kind(3, 4), torch.ones(2, 5, 3))
    assert "number of steps only" in (obstacle(program, "forward") or "")


def test_an_lstm_draws_no_random_numbers_and_can_be_compiled() -> None:
    assert obstacle(export(torch.nn.LSTM(3, 4), torch.ones(2, 5, 3)), "forward") is None


def test_only_division_that_may_end_the_process_stays_with_the_graph() -> None:
    def divide(rounding_mode: str) -> str | None:
        def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.div(x, y, rounding_mode=rounding_mode)

        return obstacle(export(model, (torch.arange(3), torch.arange(1, 4))), "forward")

    assert divide("floor") is None
    assert "does not check" in (divide("trunc") or "")


def test_tensors_in_and_tensors_out_can_be_compiled() -> None:
    assert obstacle(export(torch.nn.Linear(3, 4), torch.ones(2, 3)), "forward") is None


def test_a_compiler_that_is_not_there_is_named(tmp_path: Path) -> None:
    program = export(torch.nn.Linear(3, 4), torch.ones(2, 3))
    program.save(tmp_path / "program")
    with pytest.raises(CompilationError, match=r"/nowhere/g\+\+ does not start"):
        compile_program(program, tmp_path / "program", compiler=_NOWHERE, work=tmp_path / "work")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_fusoin_size", "3", "has no option 'max_fusoin_size'; did you mean 'max_fusion_size'"),
        ("max_fusion_size", "many", "'many'; it must be of type int"),
        ("cpp.threads", "8", "Slipway sets itself; leave it out"),
        ("cpp.cxx", "/bin/sh", "Slipway sets itself; leave it out"),
        ("post_grad_custom_pre_pass", "x", "cannot be set"),
    ],
)
def test_options_that_are_none_are_refused(
    tmp_path: Path, name: str, value: str, message: str
) -> None:
    program = export(torch.nn.Linear(3, 4), torch.ones(2, 3))
    program.save(tmp_path / "program")
    with pytest.raises(CompilationError, match=message):
        compile_program(
            program,
            tmp_path / "program",
            compiler=_NOWHERE,
            work=tmp_path / "work",
            options={name: value},
        )


def test_an_instruction_set_that_this_machine_lacks_is_refused(tmp_path: Path) -> None:
    program = export(torch.nn.Linear(3, 4), torch.ones(2, 3))
    program.save(tmp_path / "program")
    with pytest.raises(CompilationError, match="'amx' is unknown"):
        compile_program(
            program,
            tmp_path / "program",
            compiler=_NOWHERE,
            work=tmp_path / "work",
            instruction_set="amx",
        )
