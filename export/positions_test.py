"""sources.pb: where things come from, apart from what a program is."""

from __future__ import annotations

from pathlib import Path

import torch

from slipway.export import Dim, export
from slipway.program import load
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


def test_a_program_without_its_sources_is_the_same_program(tmp_path: Path) -> None:
    export(Model(), torch.ones(4)).save(tmp_path)
    digest = load(tmp_path).digest
    (tmp_path / SOURCES_FILE).unlink()
    assert load(tmp_path).digest == digest
