"""Weights: tensors in safetensors files beside program.pb."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from slipway.program.contract_codec import scalar_type_from_proto
from slipway.program.errors import CorruptProgramError, ProgramError
from slipway.program.scalar_types import ScalarType
from slipway.program.shards import (
    Verification,
    checked_path,
    file_digest,
    open_shard,
    shard_snapshot,
)
from slipway.program.torch_types import from_torch, to_torch
from slipway.proto import program_pb2 as pb

__all__ = [
    "SHARD_BYTES",
    "WEIGHTS_DIRECTORY",
    "read_weights",
    "save_tensors",
    "storage_problem",
    "write_weights",
]

WEIGHTS_DIRECTORY = "weights"

SHARD_BYTES = 2**32
"""How many bytes of tensors a shard holds at most, unless one tensor alone is larger."""


def write_weights(
    directory: Path, tensors: Mapping[str, torch.Tensor], shard_bytes: int = SHARD_BYTES
) -> pb.WeightsIndex:
    """Writes tensors below `directory`/weights and returns their index.

    Args:
      directory: the program's directory.
      tensors: by name; written in the order of their names, contiguous.
      shard_bytes: how many bytes of them a file holds at most, unless one tensor alone is larger.

    Raises:
      ProgramError: a file cannot hold one of them.
    """
    for name, tensor in tensors.items():
        if problem := storage_problem(tensor):
            raise ProgramError(f"the weight '{name}' is {problem}")
    index = pb.WeightsIndex()
    folder = directory / WEIGHTS_DIRECTORY
    for number, names in enumerate(_split(tensors, shard_bytes)):
        folder.mkdir(exist_ok=True)
        path = folder / f"weights-{number + 1:05d}.safetensors"
        save_tensors(_separate({name: tensors[name] for name in names}), path)
        for name in names:
            index.weights.add(
                name=name,
                dtype=from_torch(tensors[name].dtype).name,
                shape=tensors[name].shape,
                shard=number,
            )
        index.shards.add(file=path.name, size=path.stat().st_size, sha256=file_digest(path))
    return index


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a safetensors file, which those may read who may read any new file.

    Args:
      tensors: by name; no two share memory.
      path: of the file.
    """
    # The library writes a temporary file, which is its owner's alone, and renames it.
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path)
    path.chmod(mode)


def storage_problem(tensor: torch.Tensor) -> str | None:
    """Returns what a tensor is that no program can keep as a weight, or None if it can."""
    if tensor.layout is not torch.strided:
        return f"of layout {tensor.layout}; weights must be dense"
    try:
        scalar_type = from_torch(tensor.dtype)
    except ValueError as error:
        return f"of {error}"
    if scalar_type is ScalarType.COMPLEX128:
        return "of complex128, which safetensors files cannot hold; use complex64"
    return None


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors, contiguous and no two in one block of memory, as a file takes them."""
    separate: dict[str, torch.Tensor] = {}
    blocks: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in blocks:
            plain = plain.clone()
        blocks.add(plain.untyped_storage().data_ptr())
        separate[name] = plain
    return separate


def _split(tensors: Mapping[str, torch.Tensor], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = []
    room = 0
    for name in sorted(tensors):
        size = tensors[name].numel() * tensors[name].element_size()
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def read_weights(
    directory: Path,
    index: pb.WeightsIndex,
    device: torch.device,
    verify: Verification = "full",
    *,
    snapshot: bool = False,
) -> list[torch.Tensor]:
    """Returns the tensors of an index, in its order, on a device.

    On the CPU they are the mapped files themselves: memory that is read when it is first used, that
    the system can drop again, and that all processes with the program share. For another device
    they are moved shard by shard, each shard being unmapped before the next.

    Args:
      directory: the program's.
      index: which tensors lie in which file.
      device: where to put them.
      verify: what of the files is compared with what was written.
      snapshot: whether to copy the files into memory first.

    Raises:
      CorruptProgramError: a file is missing or short, or holds other tensors than the index says.
      DigestMismatchError: a file has been altered.
    """
    if len({weight.name for weight in index.weights}) != len(index.weights):
        raise CorruptProgramError("two weights have one name")
    contents: list[list[pb.Weight]] = [[] for _ in index.shards]
    for weight in index.weights:
        if weight.shard >= len(contents):
            raise CorruptProgramError(f"weight '{weight.name}' lies in a shard that is not listed")
        contents[weight.shard].append(weight)
    tensors: dict[str, torch.Tensor] = {}
    for shard, weights in zip(index.shards, contents, strict=True):
        folder = directory / WEIGHTS_DIRECTORY
        with contextlib.ExitStack() as stack:
            path = checked_path(folder, shard, "sizes" if snapshot else verify)
            source = path
            if snapshot:
                source = stack.enter_context(shard_snapshot(path, shard, verify))
            opened = open_shard(source)
            for weight in weights:
                tensors[weight.name] = _read_weight(opened, path, weight).to(device)
    return [tensors[weight.name] for weight in index.weights]


def _read_weight(shard: safe_open, path: Path, weight: pb.Weight) -> torch.Tensor:
    try:
        tensor: torch.Tensor = shard.get_tensor(weight.name)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise CorruptProgramError(f"{path} has no weight '{weight.name}': {error}") from error
    dtype = to_torch(scalar_type_from_proto(weight.dtype))
    if tensor.dtype != dtype or list(tensor.shape) != list(weight.shape):
        raise CorruptProgramError(
            f"weight '{weight.name}' in {path} is {tensor.dtype}{list(tensor.shape)}; "
            f"program.pb says {dtype}{list(weight.shape)}"
        )
    return tensor
