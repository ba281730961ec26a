"""Files by label, in runfiles and without Bazel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from slipway.export import ExportError, data_path
from tests.export_targets.models import configured


def test_a_test_finds_files_as_an_export_does() -> None:
    model = configured().model
    assert model(torch.ones(1, 3)).tolist() == [[15.0] * 3]


def test_a_label_may_name_its_own_repository() -> None:
    path = data_path("@slipway//tests/export_targets:checked_in.json")
    assert json.loads(path.read_text()) == {"factor": 3}


def test_without_bazel_files_are_found_from_where_python_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for place in ("models/settings.json", "other/models/tables/a.json", "top.json"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    assert data_path("//models:settings.json") == tmp_path / "models/settings.json"
    assert data_path("@other//models:tables/a.json") == tmp_path / "other/models/tables/a.json"
    assert data_path("@@other//models:tables/a.json").exists()
    assert data_path("//:top.json") == tmp_path / "top.json"


def test_the_name_of_its_own_module_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where there is a MODULE.bazel, no file says what the main module is called.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "own.json").touch()
    with pytest.raises(ExportError) as caught:
        data_path("@shop//models:own.json")
    assert caught.value.reason == "the file @shop//models:own.json is not there"
    assert caught.value.advice == (
        "write //models:own.json if it is a file of the model's own repository, which has no name "
        "here; otherwise list it in `data` of the torch_export or of the model's py_library"
    )


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("//models:none.json", "the file //models:none.json is not there"),
        ("models/settings.json", "is not the label of a file"),
        ("//models/settings.json", "is not the label of a file"),
        (":settings.json", "is not the label of a file"),
        ("//models:", "is not the label of a file"),
        ("@//models:settings.json", "is not there"),
        ("other//models:settings.json", "is not the label of a file"),
        ("//../models:settings.json", "is not the label of a file"),
        ("//models:../settings.json", "is not the label of a file"),
        ("///models:settings.json", "is not the label of a file"),
    ],
)
def test_a_file_that_cannot_be_found(label: str, reason: str) -> None:
    with pytest.raises(ExportError) as caught:
        data_path(label)
    assert reason in caught.value.reason
