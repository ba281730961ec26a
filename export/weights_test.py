"""Checkpoints of all formats, loaded into modules that they fit, and that they do not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from slipway.export import ExportError, ExportErrorKind, export, load_weights


class Tagger(nn.Module):
    """Has tied weights, buffers, a version, and a table that no checkpoint holds."""

    def __init__(self, width: int = 4, table: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 5, bias=False)
        self.head.weight = self.embedding.weight
        if table:
            self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embedding(x)))


X = torch.arange(5)

Save = Callable[[nn.Module, Path], Any]


def without_aliases(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns a state_dict as Hugging Face saves it: tied weights once."""
    return {key: value for key, value in module.state_dict().items() if key != "head.weight"}


def save_safetensors(module: nn.Module, folder: Path) -> Path:
    save_file(without_aliases(module), folder / "it.safetensors")
    return folder / "it.safetensors"


def save_torch(module: nn.Module, folder: Path) -> Path:
    torch.save(module.state_dict(), folder / "it.pt")
    return folder / "it.pt"


def save_old_torch(module: nn.Module, folder: Path) -> str:
    torch.save(module.state_dict(), folder / "it.bin", _use_new_zipfile_serialization=False)
    return str(folder / "it.bin")


def save_shards(module: nn.Module, folder: Path) -> list[Path]:
    state = without_aliases(module)
    places = {
        key: "it-1.safetensors" if key.startswith("norm.") else "it-2.safetensors" for key in state
    }
    for place in set(places.values()):
        save_file({key: state[key] for key in state if places[key] == place}, folder / place)
    (folder / "it.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return [folder / "it-1.safetensors", folder / "it-2.safetensors"]


def save_index(module: nn.Module, folder: Path) -> Path:
    save_shards(module, folder)
    return folder / "it.safetensors.index.json"


def save_index_and_shards(module: nn.Module, folder: Path) -> list[Path]:
    return [*save_shards(module, folder), folder / "it.safetensors.index.json"]


def save_folder(module: nn.Module, folder: Path) -> Path:
    save_shards(module, folder)
    # What a trainer leaves beside them.
    (folder / "config.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"")
    return folder


def save_folder_of_a_trainer(module: nn.Module, folder: Path) -> Path:
    torch.save(module.state_dict(), folder / "pytorch_model.bin")
    # What lies beside it in a trainer's checkpoints, which is no state_dict of the module.
    torch.save({"state": {}}, folder / "optimizer.pt")
    (folder / "training_args.bin").write_bytes(b"")
    return folder


def save_folder_of_torch(module: nn.Module, folder: Path) -> Path:
    save_torch(module, folder)
    return folder


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "save",
    [
        save_folder,
        save_folder_of_a_trainer,
        save_folder_of_torch,
        save_safetensors,
        save_torch,
        save_old_torch,
        save_shards,
        save_index,
        save_index_and_shards,
    ],
)
def test_a_module_gets_what_was_saved(save: Save, device: str, tmp_path: Path) -> None:
    trained = Tagger().eval()
    trained.norm.running_mean += torch.arange(4)  # type: ignore[operator]
    with torch.device(device):
        module = Tagger().eval()
    load_weights(module, save(trained, tmp_path))
    assert torch.equal(module(X), trained(X))
    # Still tied, and still what an optimizer would find.
    assert module.head.weight is module.embedding.weight
    assert isinstance(module.head.weight, nn.Parameter)
    assert module.head.weight.requires_grad
    assert torch.equal(export(module, X)(X), trained(X))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_module_says_what_its_dtypes_are(device: str, tmp_path: Path) -> None:
    half = Tagger().to(torch.bfloat16)
    with torch.device(device):
        module = Tagger()
        kept = Tagger().to(torch.bfloat16)
    load_weights(module, save_safetensors(half, tmp_path))
    load_weights(kept, tmp_path / "it.safetensors")
    assert module.head.weight.dtype == torch.float32
    assert torch.equal(module.head.weight, half.head.weight.float())
    assert torch.equal(kept.head.weight, half.head.weight)


def test_versions_of_modules_are_heeded(tmp_path: Path) -> None:
    """As in state_dicts of before BatchNorm counted its batches."""
    state = Tagger().state_dict()
    del state["norm.num_batches_tracked"]
    state._metadata["norm"]["version"] = 1  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "old.pt")
    load_weights(Tagger(), tmp_path / "old.pt")
    state._metadata["norm"]["version"] = 2  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "new.pt")
    with pytest.raises(ExportError, match=r"norm\.num_batches_tracked"):
        load_weights(Tagger(), tmp_path / "new.pt")


def refusal(module: Any, weights: Any) -> ExportError:
    with pytest.raises(ExportError) as caught:
        load_weights(module, weights)
    assert caught.value.kind is ExportErrorKind.INVALID_SPEC
    assert caught.value.advice
    return caught.value


def test_all_that_does_not_fit_is_listed_at_once(tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in without_aliases(Tagger()).items()}
    state["norm.bias"] = torch.zeros(4, dtype=torch.int8)
    state["norm.weight"] = torch.zeros(7)
    state["extra"] = state.pop("norm.running_var")
    save_file(state, tmp_path / "it.safetensors")
    reason = refusal(Tagger(), tmp_path / "it.safetensors").reason
    assert reason.splitlines()[1:] == [
        "  1 missing, which only the module has:",
        "    norm.running_var",
        "  1 unexpected, which only the checkpoint has:",
        "    extra",
        "  2 of another shape or kind:",
        "    norm.bias: torch.float32 in the module, torch.int8 in the checkpoint",
        "    norm.weight: (4,) in the module, (7,) in the checkpoint",
    ]


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    save_file({f"tensor_{n:04}": torch.ones(1) for n in range(1000)}, tmp_path / "it.safetensors")
    reason = refusal(Tagger(), tmp_path / "it.safetensors").reason
    assert "1000 unexpected" in reason
    assert "… and 980 more" in reason
    assert len(reason.splitlines()) < 40


def test_weights_that_are_tied_must_agree(tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in Tagger().state_dict().items()}
    state["head.weight"] += 1
    save_file(state, tmp_path / "it.safetensors")
    error = refusal(Tagger(), tmp_path / "it.safetensors")
    assert "'embedding.weight' and 'head.weight' are one weight in the module" in error.reason


def test_a_prefix_of_all_names_is_pointed_out(tmp_path: Path) -> None:
    save_torch(nn.Sequential(Tagger()), tmp_path)
    assert "checkpoint's names begin with '0.'" in refusal(Tagger(), tmp_path / "it.pt").advice
    save_torch(Tagger(), tmp_path)
    module = nn.Sequential(Tagger())
    assert "module's names begin with '0.'" in refusal(module, tmp_path / "it.pt").advice


def test_what_a_checkpoint_does_not_hold_must_have_values(tmp_path: Path) -> None:
    save_safetensors(Tagger(), tmp_path)
    with torch.device("meta"):
        module = Tagger(table=True)
    error = refusal(module, tmp_path / "it.safetensors")
    assert "have no values, because they are on the device meta:\n    table" in error.reason
    load_weights(Tagger(table=True), tmp_path / "it.safetensors")


def test_a_function_has_no_weights(tmp_path: Path) -> None:
    error = refusal(lambda x: x, tmp_path / "it.safetensors")
    assert "is for a module, but the model is a function" in error.reason


def test_a_module_without_values_cannot_be_exported() -> None:
    with torch.device("meta"):
        module = Tagger()
    with pytest.raises(ExportError, match=r"Tagger these have no values(.|\n)*load_weights"):
        export(module, X)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("code_was_run",)


def write(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("it.pt", {"a": RunsCode()}, "needs posix.mkdir to be read; only tensors"),
        ("it.pt", [torch.ones(2)], "holds a list, and no state_dict"),
        ("it.pt", {"epoch": 3}, "more than the tensors of a state_dict:\n    epoch: int"),
        ("it.pt", {1: torch.ones(2)}, "more than the tensors of a state_dict:\n    1: Tensor"),
        ("it.pt", b"", "is not a whole state_dict"),
        ("it.bin", b"PK\x03\x04 and no more", "is not a whole state_dict"),
        ("it.bin", b"no pickle", "it.bin is no state_dict"),
        ("it.safetensors", b"version https://git-lfs", "is not a whole safetensors file"),
        ("it.safetensors", b"", "is not a whole safetensors file"),
        ("it.ckpt", {}, "is of no kind that can be read"),
        ("it.index.json", b"[]", "index .* cannot be read"),
        ("it.index.json", b'{"weight_map": {"a": "../b"}}', "is not one from names of tensors"),
        ("it.index.json", b'{"weight_map": {"a": "b.pt"}}', r"checkpoint b\.pt does not exist"),
    ],
)
def test_files_that_are_no_checkpoint(
    name: str, content: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, content)
    error = refusal(Tagger(), tmp_path / name)
    with pytest.raises(ExportError, match=reason):
        raise error
    assert not (tmp_path / "code_was_run").exists()
    assert str(tmp_path) not in error.cause


def test_a_part_of_a_checkpoint_in_place_of_a_state_dict(tmp_path: Path) -> None:
    torch.save({"model": Tagger().state_dict(), "epoch": 3}, tmp_path / "it.pt")
    assert "torch.save(checkpoint['model'], …)" in refusal(Tagger(), tmp_path / "it.pt").advice


def test_shards_must_belong_together(tmp_path: Path) -> None:
    first, second, index = save_index_and_shards(Tagger(), tmp_path)
    other = save_torch(Tagger(), tmp_path)
    copy = tmp_path / "copy.index.json"
    copy.write_bytes(index.read_bytes())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "it.safetensors").write_text("{}")
    for weights, reason in [
        ([], "has no files"),
        ([tmp_path / "empty"], r"a folder without a file that can be read; it holds\n.*config"),
        ([tmp_path / "damaged"], r"it\.safetensors of .*damaged"),
        ([index, first], "names files that are not among the weights:\n    it-2.safetensors"),
        ([index, first, second, other], "does not name:\n    .*it.pt"),
        ([index, copy, first, second], "two indices"),
        ([first, other], "in two of the checkpoint's files:\n    norm"),
        ([first], "1 missing|2 missing"),
    ]:
        with pytest.raises(ExportError, match=reason):
            load_weights(Tagger(), weights)
    save_file({"norm.bias": torch.ones(4)}, first)
    with pytest.raises(ExportError, match=r"it-1.safetensors holds tensors which it does not hold"):
        load_weights(Tagger(), [index, first, second])
