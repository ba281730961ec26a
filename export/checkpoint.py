"""Reads checkpoints: the tensors of a trained model by name, from files of several formats.

No file can run code: safetensors files hold no code, and torch reads the others with its unpickler
that makes nothing but tensors and plain containers.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from slipway.export.errors import ExportError, ExportErrorKind
from slipway.program.words import type_of

__all__ = ["CheckpointFile", "invalid", "listed", "read_checkpoint"]

_INDEX = ".index.json"
_TORCH = (".pt", ".pth", ".bin")
_IN_FOLDERS = (
    (".safetensors.index.json",),
    (".safetensors",),
    (".bin.index.json",),
    # Beside it a trainer leaves training_args.bin, optimizer.pt and the like.
    ("pytorch_model.bin",),
    _TORCH,
)
"""How the files of a folder end that are its checkpoint; the first kind that there is counts."""
_SAVE = "save a plain state_dict: torch.save(model.state_dict(), …), or safetensors.torch.save_file"

_LISTED = 20
"""How many names a message lists of each kind."""


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A file of a checkpoint.

    Attributes:
      path: where it is.
      name: what messages call it: its label, in a build.
    """

    path: Path
    name: str


def read_checkpoint(files: Sequence[CheckpointFile]) -> dict[str, Any]:
    """Returns the tensors of a checkpoint by name, mapped into memory where the format allows it.

    Beside tensors there may be what `torch.nn.Module.get_extra_state` gave. The dict of one file
    that torch wrote is of the type, and has the attributes, that it had.

    Args:
      files: `.safetensors`; `.pt`, `.pth` or `.bin`, as `torch.save(model.state_dict(), …)` writes
        them; several of them, which are shards; and among those the index that Hugging Face writes,
        `.index.json`. An index without shards stands for those that lie beside it, and a folder for
        the checkpoint in it, as `save_pretrained` writes it.

    Raises:
      ExportError: a file is missing or of another kind, or they do not belong together.
    """
    files = [inner for file in files for inner in _files_of(file)]
    indices = [file for file in files if file.path.name.endswith(_INDEX)]
    shards = [file for file in files if file not in indices]
    if not files:
        raise invalid("the checkpoint has no files", "name at least one")
    if len(indices) > 1:
        names = " and ".join(file.name for file in indices)
        raise invalid(f"the checkpoint has two indices, {names}", "name the files of one")
    places = _weight_map(indices[0]) if indices else {}
    if indices:
        shards = _shards_of(indices[0], places, shards)
    contents = {file: _read(file) for file in shards}
    _require_distinct(contents)
    for file, content in contents.items():
        expected = {name for name, place in places.items() if place == file.path.name}
        absent = sorted(expected - set(content))
        if absent:
            raise invalid(
                f"the index {indices[0].name} says that {file.name} holds tensors which it does "
                f"not hold:\n{listed(absent)}",
                "take index and shards from one checkpoint, and fetch the shards again if they "
                "are incomplete",
            )
    if len(contents) == 1:
        return next(iter(contents.values()))
    return {name: value for content in contents.values() for name, value in content.items()}


def listed(lines: Iterable[str]) -> str:
    """Returns lines indented, and how many more there are if there are very many."""
    lines = list(lines)
    shown = [f"    {line}" for line in lines[:_LISTED]]
    if len(lines) > _LISTED:
        shown.append(f"    … and {len(lines) - _LISTED} more")
    return "\n".join(shown)


def invalid(
    reason: str, advice: str, error: Exception | None = None, path: str = ""
) -> ExportError:
    """Returns an error about a checkpoint.

    Args:
      reason, advice: as in `ExportError`.
      error: what a library says about it.
      path: left out of what it says, because no message names a machine's folders.
    """
    cause = "" if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
    return ExportError(
        ExportErrorKind.INVALID_SPEC,
        reason,
        advice,
        cause=cause.replace(path, Path(path).name) if path else cause,
    )


def _files_of(file: CheckpointFile) -> list[CheckpointFile]:
    """Returns a file itself, or the files of a folder that are a checkpoint."""
    if not file.path.is_dir():
        return [file]
    inside = sorted(path for path in file.path.iterdir() if path.is_file())
    for endings in _IN_FOLDERS:
        found = [path for path in inside if path.name.endswith(endings)]
        if found:
            return [CheckpointFile(path, f"{path.name} of {file.name}") for path in found]
    raise invalid(
        f"the checkpoint {file.name} is a folder without a file that can be read; it holds\n"
        f"{listed([path.name for path in inside] or ['(no files)'])}",
        f"put files into it that end in .safetensors, {', '.join(_TORCH)}, or {_INDEX} with its "
        "shards",
    )


def _weight_map(index: CheckpointFile) -> Mapping[str, str]:
    """Returns the file of each tensor, as an index names it."""
    try:
        places = json.loads(index.path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise invalid(
            f"the checkpoint's index {index.name} cannot be read",
            "give the file that save_pretrained wrote: JSON with the entry 'weight_map'",
            error,
            str(index.path),
        ) from error
    if not isinstance(places, dict) or not all(
        isinstance(place, str) and Path(place).name == place for place in places.values()
    ):
        raise invalid(
            f"the 'weight_map' of the checkpoint's index {index.name} is not one from names of "
            "tensors to names of files",
            "give the file that save_pretrained wrote",
        )
    return places


def _shards_of(
    index: CheckpointFile, places: Mapping[str, str], shards: Sequence[CheckpointFile]
) -> list[CheckpointFile]:
    """Returns the shards that an index names."""
    names = sorted(set(places.values()))
    if not shards:
        return [CheckpointFile(index.path.parent / name, name) for name in names]
    given = {file.path.name: file for file in shards}
    absent = [name for name in names if name not in given]
    if absent:
        raise invalid(
            f"the index {index.name} names files that are not among the weights:\n{listed(absent)}",
            "list them in weights too",
        )
    strange = [file.name for name, file in given.items() if name not in names]
    if strange:
        raise invalid(
            f"among the weights are files that the index {index.name} does not name:\n"
            f"{listed(strange)}",
            "leave them out, or take the index of the same checkpoint",
        )
    return [given[name] for name in names]


def _read(file: CheckpointFile) -> dict[str, Any]:
    if not file.path.is_file():
        raise invalid(f"the checkpoint {file.name} does not exist", "name the checkpoint's files")
    if file.path.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.path.suffix in _TORCH:
        return _read_torch(file)
    raise invalid(
        f"the checkpoint {file.name} is of no kind that can be read",
        f"give a file named *.safetensors, {', '.join('*' + suffix for suffix in _TORCH)}, or "
        f"shards with an index named *{_INDEX}",
    )


def _read_safetensors(file: CheckpointFile) -> dict[str, Any]:
    try:
        with safe_open(file.path, framework="pt", device="cpu") as content:
            return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise invalid(
            f"the checkpoint {file.name} is not a whole safetensors file",
            "fetch or write it again; a file of Git LFS may be a pointer to it",
            error,
            str(file.path),
        ) from error


def _read_torch(file: CheckpointFile) -> dict[str, Any]:
    try:
        # Files of torch before 1.6 are no archives, and cannot be mapped.
        mapped = zipfile.is_zipfile(file.path)
        content = torch.load(file.path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        # Torch's own advice is to load the file in a way that runs its code.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise invalid(
            f"the checkpoint {file.name} "
            + (f"needs {code[1]} to be read" if code else "is no state_dict")
            + "; only tensors and plain containers are read, so that no file runs code",
            _SAVE,
        ) from error
    except Exception as error:  # What torch's reader stumbles on is of many types.
        raise invalid(
            f"the checkpoint {file.name} is not a whole state_dict", _SAVE, error, str(file.path)
        ) from error
    if not isinstance(content, dict):
        raise invalid(
            f"the checkpoint {file.name} holds {type_of(content)}, and no state_dict", _SAVE
        )
    strange = [
        f"{name}: {type(value).__name__}"
        for name, value in content.items()
        if not isinstance(name, str)
        or not (isinstance(value, torch.Tensor) or name.endswith("_extra_state"))
    ]
    if strange:
        inner = [name for name, value in content.items() if isinstance(value, dict)]
        example = f"torch.save(checkpoint[{inner[0]!r}], …)" if inner else _SAVE
        raise invalid(
            f"the checkpoint {file.name} holds more than the tensors of a state_dict:\n"
            f"{listed(strange)}",
            f"save the part that is the model's state_dict by itself: {example}"
            if inner
            else example,
        )
    return content


def _require_distinct(contents: Mapping[CheckpointFile, Mapping[str, Any]]) -> None:
    owners: dict[str, str] = {}
    twice = []
    for file, content in contents.items():
        for name in content:
            if name in owners:
                twice.append(f"{name}: in {owners[name]} and {file.name}")
            owners[name] = file.name
    if twice:
        raise invalid(
            f"tensors are in two of the checkpoint's files:\n{listed(twice)}",
            "name the shards of one checkpoint; a module takes the weights of one",
        )
