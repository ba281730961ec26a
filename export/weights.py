"""Loads a checkpoint into a module."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from slipway.export.checkpoint import CheckpointFile, invalid, listed, read_checkpoint
from slipway.program.words import type_of

__all__ = ["load_files", "load_weights", "require_values"]

_WITHOUT_VALUES = (
    "a checkpoint does not hold buffers that are not persistent: compute those outside of "
    'torch.device("meta"), for example torch.arange(…, device="cpu")'
)


def load_weights(
    module: torch.nn.Module, weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
) -> None:
    """Loads a checkpoint into a module, as `module.load_state_dict(checkpoint)` does.

    Example:

        with torch.device("meta"):       # no memory, no random numbers
            model = Ranker().eval()
        load_weights(model, "ranker.safetensors")

    What is particular:

    - Names must agree exactly, and shapes; all that do not are listed. A module that could not be
      loaded may hold a part of the checkpoint.
    - Values are converted to the dtypes that the module has, among floating-point ones and among
      integers only. For a checkpoint in bfloat16 to stay so, make the module `.to(torch.bfloat16)`.
    - Parameters on the device meta are replaced by the checkpoint's tensors, mapped into memory.
    - Of weights that are tied in the module, the checkpoint may hold one or all; they stay tied.

    Args:
      module: whose parameters and persistent buffers are loaded.
      weights: a file `.safetensors`, or a state_dict that `torch.save` wrote (`.pt`, `.pth`,
        `.bin`), which is read without running code; or several that are shards; or the index
        `.index.json` that Hugging Face writes beside shards; or a folder with one of these.

    Raises:
      ExportError: of the kind `INVALID_SPEC`; the checkpoint cannot be read, or does not fit.
    """
    paths = [weights] if isinstance(weights, str | os.PathLike) else list(weights)
    load_files(module, [CheckpointFile(Path(path), str(path)) for path in paths])


def load_files(module: object, files: Sequence[CheckpointFile]) -> None:
    """Loads a checkpoint into a module, as `load_weights` does. Raises: ExportError."""
    name = ", ".join(file.name for file in files[:3])
    name += f" … ({len(files)} files)" if len(files) > 3 else ""
    if not isinstance(module, torch.nn.Module):
        raise invalid(
            f"the checkpoint {name} is for a module, but the model is {type_of(module)}",
            "give the torch.nn.Module that has the weights as ExportSpec(model=…), and functions "
            "of it in methods=",
        )
    state = read_checkpoint(files)
    wanted = module.state_dict(keep_vars=True)
    ties = list(_ties(module))
    for names in ties:
        _complete(state, names, name)
    misfits = _misfits(wanted, state)
    on_meta = any(value.is_meta for value in chain(module.parameters(), module.buffers()))
    # In place: torch keeps the versions of modules in an attribute of the dict.
    for key in misfits:
        del state[key]
    if on_meta:
        for key, value in state.items():
            target = wanted.get(key)
            if isinstance(target, torch.Tensor) and not is_lazy(target):
                state[key] = value.to(target.dtype)
    try:
        result = module.load_state_dict(state, strict=False, assign=on_meta)
    except Exception as error:  # A module's own hooks may raise anything.
        raise invalid(
            f"the module {type(module).__name__} does not take the checkpoint {name}",
            "see what the module's own loading says",
            error,
        ) from error
    missing = [key for key in result.missing_keys if key not in misfits]
    _require_fit(module, name, missing, sorted(result.unexpected_keys), list(misfits.values()))
    if on_meta:
        for names in ties:
            _tie(module, names)
    require_values(module, _WITHOUT_VALUES)


def require_values(module: torch.nn.Module, advice: str) -> None:
    """Raises an ExportError if parameters or buffers are on the device meta, without values."""
    names = [
        name
        for tensors in (module.named_parameters, module.named_buffers)
        for name, tensor in tensors()
        if tensor.is_meta
    ]
    if names:
        raise invalid(
            f"of the module {type(module).__name__} these have no values, because they are on the "
            f"device meta:\n{listed(names)}",
            advice,
        )


def _ties(module: torch.nn.Module) -> Iterator[list[str]]:
    """Yields the names of each parameter or buffer that has several."""
    for named in (module.named_parameters, module.named_buffers):
        names: dict[int, list[str]] = {}
        for name, tensor in named(remove_duplicate=False):
            names.setdefault(id(tensor), []).append(name)
        yield from (group for group in names.values() if len(group) > 1)


def _complete(state: dict[str, Any], names: Sequence[str], checkpoint: str) -> None:
    """Gives all names of a tied weight the tensor that the checkpoint has under one of them."""
    held = [name for name in names if name in state]
    if not held:
        return
    first = state[held[0]]
    for name in held[1:]:
        if state[name].dtype != first.dtype or not torch.equal(state[name], first):
            raise invalid(
                f"'{held[0]}' and '{name}' are one weight in the module, but two different ones in "
                f"the checkpoint {checkpoint}",
                "make a module whose weights are not tied, as the one that was trained",
            )
    for name in names:
        state[name] = first


def _tie(module: torch.nn.Module, names: Sequence[str]) -> None:
    first: torch.Tensor | None = None
    for name in names:
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        if first is None:
            first = getattr(owner, attribute)
        setattr(owner, attribute, first)


def _misfits(wanted: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, str]:
    """Returns what is wrong with tensors that the module has under the same name, by name."""
    found = {}
    for name, value in sorted(state.items()):
        target = wanted.get(name)
        if not isinstance(value, torch.Tensor) or not isinstance(target, torch.Tensor):
            continue
        if is_lazy(target):
            continue
        if value.shape != target.shape:
            found[name] = (
                f"{name}: {tuple(target.shape)} in the module, "
                f"{tuple(value.shape)} in the checkpoint"
            )
        elif _kind(value) != _kind(target):
            found[name] = f"{name}: {target.dtype} in the module, {value.dtype} in the checkpoint"
    return found


def _kind(tensor: torch.Tensor) -> str:
    """Returns within which dtypes a tensor's values may be converted."""
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "floating point"
    return "boolean" if tensor.dtype is torch.bool else "integer"


def _require_fit(
    module: torch.nn.Module,
    checkpoint: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    misfits: Sequence[str],
) -> None:
    parts = [
        f"  {len(lines)} {what}:\n{listed(lines)}"
        for what, lines in (
            ("missing, which only the module has", missing),
            ("unexpected, which only the checkpoint has", unexpected),
            ("of another shape or kind", misfits),
        )
        if lines
    ]
    if parts:
        raise invalid(
            f"the checkpoint {checkpoint} does not fit the module {type(module).__name__}; its "
            "tensors are\n" + "\n".join(parts),
            _advice(missing, unexpected),
        )


def _advice(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    for names, others, whose in (
        (unexpected, missing, "the checkpoint's"),
        (missing, unexpected, "the module's"),
    ):
        prefix = names[0].partition(".")[0] + "." if names else ""
        if (
            prefix
            and all(name.startswith(prefix) for name in names)
            and any(name.removeprefix(prefix) in others for name in names)
        ):
            return (
                f"{whose} names begin with '{prefix}' and fit without it: save the state_dict of "
                "the very module that is exported, not of one around or inside it"
            )
    return "make the module with the settings that it was trained with, or give its own checkpoint"
