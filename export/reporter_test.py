"""Reports on exports: what was compared and what was not, how much there is, and the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from slipway.export import Dim, export
from slipway.export.reporter import main
from slipway.program.cases import AnsweredCase


def test_a_report_says_what_the_gate_did(tmp_path: Path) -> None:
    rows = Dim("rows", min=1, max=2000)
    program = export(
        torch.nn.Linear(1000, 2).eval(), torch.ones(3, 1000), dynamic_shapes={"input": {0: rows}}
    )
    program.save(tmp_path / "it.program")
    outputs = [tmp_path / "first", tmp_path / "second"]
    for output in outputs:
        arguments = ["--fact=label=//models:it", "--custom-ops=models.operators"]
        assert main([*arguments, f"--output={output}", str(tmp_path / "it.program")]) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    report = json.loads(outputs[0].read_text(encoding="utf-8"))
    assert list(report)[:2] == ["label", "custom_ops"]
    assert report["label"] == "//models:it"
    assert report["custom_ops"] == ["models.operators"]
    assert report["digests"]["program"] == program.digest
    assert report["weights"] == {"tensors": 2, "elements": 2002, "bytes": 8008, "files": 1}
    answered = [case for case in program.cases if isinstance(case, AnsweredCase)]
    assert len(answered) > 1
    assert report["cases"]["answered"] == len(answered)
    method = report["methods"]["forward"]
    assert method["example"] == {"input": "float32[3, 1000]"}
    assert method["symbols"] == {"rows": {"minimum": 1, "maximum": 2000}}
    # 2000 rows of 1000 are more elements than a build waits for.
    assert method["compared_with_model"][:2] == ["the example", "rows = 1"]
    assert "rows = 2000" in method["not_compared"]
    assert not {*method["compared_with_model"]} & {*method["not_compared"]}


def test_what_is_no_program_has_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--fact=label=//models:it", f"--output={tmp_path / 'report'}", str(tmp_path)]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("//models:it: no report: cannot read ")
