"""Models that change their buffers or their arguments when they are called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slipway.export import export
from slipway.program import Program, load
from slipway.program.container import read_container, write_container
from slipway.program.interpreter import use_interpreter


class Counter(torch.nn.Module):
    """Counts its calls in a buffer, in one of three ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.register_buffer("count", torch.zeros(2))
        self.inner = torch.nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "in place":
            self.count.add_(1)
        elif self.way == "by a view":
            self.count.view(1, 2)[0].add_(1)
        else:
            self.count = self.count + 1
        return x + self.count


class Outer(torch.nn.Module):
    """Has the counter inside, where torch.export overlooks that a buffer is replaced."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.counter = Counter(way)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.counter(x)
        return result


def exported(way: str, path: Path) -> Program:
    model = Outer(way).eval()
    export(model, torch.zeros(2)).save(path)
    # Neither tracing nor the gate left a trace in the model.
    assert model.counter.count.tolist() == [0, 0]
    return load(path)


@pytest.mark.parametrize("way", ["in place", "by a view", "replaced"])
def test_each_loaded_program_counts_for_itself(way: str, tmp_path: Path) -> None:
    program = exported(way, tmp_path / "program")
    assert [program(torch.zeros(2))[0].item() for _ in range(3)] == [1, 2, 3]
    assert program.state["counter.count"].tolist() == [3, 3]
    assert load(tmp_path / "program")(torch.zeros(2))[0].item() == 1
    program.reset()
    assert program(torch.zeros(2))[0].item() == 1


def test_a_program_that_hides_what_it_changes_is_found_out(tmp_path: Path) -> None:
    exported("in place", tmp_path / "program")
    container = read_container(tmp_path / "program")
    graphs = container.graphs()
    del graphs.methods[0].mutated_inputs[:]
    graph = graphs.SerializeToString(deterministic=True)
    write_container(tmp_path / "program", replace(container, graph=graph))
    hiding = load(tmp_path / "program")
    assert hiding(torch.zeros(2))[0].item() == 1
    assert set(hiding.state) == {"counter.count"}
    assert load(tmp_path / "program")(torch.zeros(2))[0].item() == 1


def test_activations_changed_in_place_make_no_state_of_weights(tmp_path: Path) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True)
    ).eval()
    program = export(model, torch.randn(1, 3, 8, 8))
    assert not program.state


def test_an_argument_is_changed_as_the_model_changes_it() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        x.reshape(-1).mul_(2)
        return x.sum()

    program = export(double, torch.ones(2, 2))
    given = torch.ones(2, 2)
    assert program(given).item() == 8
    assert given.tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("operator", ["native_batch_norm", "_unsafe_view"])
def test_operators_that_do_not_say_that_they_write_or_give_a_view(operator: str) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("state", torch.zeros(2))
            self.register_buffer("variance", torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = self.get_buffer("state")
            if operator == "native_batch_norm":
                variance = self.get_buffer("variance")
                torch.native_batch_norm(x, None, None, state, variance, True, 0.5, 1e-5)
            else:
                torch.ops.aten._unsafe_view(state, [1, 2]).add_(1)
            return x + state

    model, x = Model(), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    program = export(model, x)
    assert "state" in program.state
    for _ in range(3):
        torch.testing.assert_close(program(x), model(x))


def test_a_program_with_state_is_left_to_python(tmp_path: Path) -> None:
    program = exported("in place", tmp_path / "program")
    assert use_interpreter(program) == ["forward"]
    assert [program(torch.zeros(2)).tolist() for _ in range(2)] == [[1, 1], [2, 2]]


def test_sizes_that_are_compared_leave_no_trace_in_the_state() -> None:
    model = Outer("in place").eval()
    program = export(model, torch.zeros(3, 2), dynamic_shapes={"x": "n, 2"}, symbols={"n": (1, 9)})
    assert program(torch.zeros(1, 2)).tolist() == [[1.0, 1.0]]
