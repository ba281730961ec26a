"""sources.pb: where things come from, apart from what a program is."""

from __future__ import annotations

from pathlib import Path

import torch

from slipway.export import Dim, ExportSpec, MethodSpec, export, export_spec
from slipway.program import Program, load
from slipway.program.container import SOURCES_FILE, read_container


class Model(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubled = x * 2
        return doubled.reshape(-1, 2)


def test_nodes_and_relations_have_lines_and_the_example_its_shape(tmp_path: Path) -> None:
    export(Model(), torch.ones(4), dynamic_shapes={"x": {0: Dim.AUTO}}).save(tmp_path)
    (sources,) = read_container(tmp_path).sources_index().methods
    named = {sources.positions[node] for node in sources.nodes if node < len(sources.positions)}
    lines = {int(position.rpartition(":")[2]) for position in named}
    assert all(position.startswith(("export/", "positions_test.py")) for position in named), named
    first = Model.forward.__code__.co_firstlineno
    assert lines == {first + 1, first + 2}
    assert [list(item.shape) for item in sources.example] == [[4]]
    assert any(relation in sources.positions for relation in sources.relations)


def _double(x: torch.Tensor) -> torch.Tensor:
    doubled = x * 2
    return doubled.reshape(x.shape[0], 2, -1)


class Methods(torch.nn.Module):
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return _double(x)


def _node_lines(program: Program, path: Path) -> list[int | None]:
    """Returns the line in this file of each node, None for those that have no line."""
    program.save(path)
    (sources,) = read_container(path).sources_index().methods
    positions = [*sources.positions, None]
    named = [positions[node] for node in sources.nodes]
    assert all(name is None or "positions_test.py:" in name for name in named), named
    return [None if name is None else int(name.rpartition(":")[2]) for name in named]


def test_nodes_of_functions_and_methods_have_lines(tmp_path: Path) -> None:
    first = _double.__code__.co_firstlineno
    example = torch.ones(3, 4)
    function = export(_double, example, dynamic_shapes=("batch, 4",), symbols={"batch": (1, 8)})
    spec = MethodSpec(args=example, dynamic_shapes=("batch, 4",), symbols={"batch": (1, 8)})
    method = export_spec(ExportSpec(model=Methods(), methods={"encode": spec}))
    # The size is read by a node that torch adds: no line has it.
    expected = [None, first + 1, first + 2]
    assert _node_lines(function, tmp_path / "function") == expected
    assert _node_lines(method, tmp_path / "method") == expected


def test_a_program_without_its_sources_is_the_same_program(tmp_path: Path) -> None:
    export(Model(), torch.ones(4)).save(tmp_path)
    digest = load(tmp_path).digest
    (tmp_path / SOURCES_FILE).unlink()
    assert load(tmp_path).digest == digest
