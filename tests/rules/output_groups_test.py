"""The files of the output groups of a torch_export target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runfiles import Runfiles

from slipway.program.container import read_container


@pytest.fixture(scope="module")
def folder() -> Path:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    found = runfiles.Rlocation("slipway/examples/mlp/mlp.program")
    assert found is not None
    return Path(found).parent


def test_the_contract_is_what_reviews_read(folder: Path) -> None:
    text = (folder / "mlp.program.contract.txt").read_text(encoding="utf-8")
    assert text.startswith("method forward\n  inputs\n    features  float32[batch, 256]\n")
    assert "written by" not in text


def test_the_report_says_what_was_done(folder: Path) -> None:
    report = json.loads((folder / "mlp.program.report.json").read_text(encoding="utf-8"))
    assert report["label"] == "//examples/mlp:mlp"
    assert report["rule"] == "torch_export"
    assert report["entry_point"] == "examples.mlp.model:export_spec"
    assert report["digests"]["program"] == read_container(folder / "mlp.program").digest
    method = report["methods"]["forward"]
    assert method["example"] == {"features": "float32[2, 256]"}
    assert method["compared_with_model"][:3] == ["the example", "batch = 1", "batch = 64"]
    assert method["not_compared"] == []
    assert report["operators"] == {"aten::linear.default": 3, "aten::relu.default": 2}
    assert report["weights"] == {"tensors": 6, "elements": 399370, "bytes": 1597480, "files": 1}


def test_the_graph_has_the_lines_of_the_model(folder: Path) -> None:
    lines = (folder / "mlp.program.graph.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "method forward"
    assert "  %0 = weight layers.0.weight: float32[512, 256]" in lines
    (first,) = [line for line in lines if line.startswith("  %7 = ")]
    assert first.startswith("  %7 = aten::linear.default(%6, %0, %1)  # examples/mlp/model.py:")
