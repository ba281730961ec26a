"""Programs whose weights and settings are files, as Bazel made them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runfiles import Runfiles

from slipway.program import load


def path(name: str) -> Path:
    runfiles = Runfiles.Create()
    assert runfiles is not None
    return Path(runfiles.Rlocation(f"slipway/tests/export_targets/{name}.program"))


@pytest.mark.parametrize(
    "name",
    [
        "it's a scaler, too",
        "loads_by_itself",
        "scaler_chosen",
        "scaler_directory",
        "scaler_safetensors",
        "scaler_shards",
        "scaler_shards_with_index",
        "scaler_torch",
        "scaler_without_values",
    ],
)
def test_the_program_has_the_weights_of_the_checkpoint(name: str) -> None:
    result = load(path(name))(torch.full((2, 3), 10.0))
    assert result.tolist() == [[14.0, 25.0, 36.0]] * 2


def test_settings_are_read_from_files_checked_in_and_made() -> None:
    assert load(path("configured"))(torch.ones(1, 3)).tolist() == [[15.0] * 3]


@pytest.mark.parametrize("name", ["from_all_repositories", "from_its_own_repository"])
def test_a_model_may_lie_in_another_repository(name: str) -> None:
    assert load(path(name))(torch.ones(3)).tolist() == [1.5] * 3


def test_the_format_of_the_checkpoint_is_not_in_the_program() -> None:
    contents = [
        {
            str(file.relative_to(path(name))): file.read_bytes()
            for file in path(name).rglob("*")
            if file.is_file()
        }
        for name in ("scaler_safetensors", "scaler_shards", "scaler_torch", "scaler_directory")
    ]
    assert contents[0] == contents[1] == contents[2] == contents[3]
