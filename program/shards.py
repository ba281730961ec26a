"""Files of tensors beside program.pb: found, measured and opened without trusting the artifact."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from slipway.program.errors import CorruptProgramError, DigestMismatchError
from slipway.proto import program_pb2 as pb

__all__ = ["Verification", "checked_path", "file_digest", "open_shard", "shard_snapshot"]

Verification = Literal["full", "sizes"]
"""What is compared with what was written: all bytes by their SHA-256, or only how many there are.

A file's header, which says where in it each tensor lies, is checked when the file is opened.
"""


def file_digest(path: Path) -> bytes:
    """Returns the SHA-256 of a file's content, of which it keeps nothing in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def checked_path(folder: Path, shard: pb.Shard, verify: Verification = "full") -> Path:
    """Returns the path of a shard that is what was written.

    Args:
      folder: in which it must lie.
      shard: names it, its size and its digest.
      verify: whether to compare the digest.

    Raises:
      CorruptProgramError: it is missing, short, no file, not named plainly, or a link to somewhere
        outside the program's directory.
      DigestMismatchError: it has been altered.
    """
    # The name comes from the artifact: nothing but a plain file in the folder may be meant.
    if not shard.file or shard.file in {".", ".."} or set(shard.file) & {"/", "\\", "\0"}:
        raise CorruptProgramError(f"{folder}: {shard.file!r} is not a plain file name")
    path = folder / shard.file
    try:
        status = os.stat(path)
    except OSError as error:
        raise CorruptProgramError(
            f"cannot read the {folder.name} {path}: {error.strerror}; copy or build the program "
            "again"
        ) from error
    # Links are how Bazel lays out inputs, file by file or the whole directory: program.pb leads to
    # where the program really is, and a shard must be there too.
    homes = {folder.parent.resolve(), (folder.parent / "program.pb").resolve().parent}
    if not any(path.resolve().is_relative_to(home) for home in homes):
        raise CorruptProgramError(f"{path} is a link out of the program's directory")
    if not stat.S_ISREG(status.st_mode):
        raise CorruptProgramError(f"the {folder.name} {path} are not a file")
    if status.st_size != shard.size:
        raise CorruptProgramError(
            f"the {folder.name} {path} have {status.st_size} bytes; {shard.size} were written. "
            "Copy or build the program again"
        )
    if verify == "full":
        _check_digest(path, path, shard)
    return path


@contextlib.contextmanager
def shard_snapshot(path: Path, shard: pb.Shard, verify: Verification) -> Iterator[Path]:
    """Yields the path of a copy of a shard in memory, which no change of the file reaches.

    It is gone when the block ends, except for what has been mapped of it.

    Args:
      path: as `checked_path` gave it.
      shard: its size and its digest.
      verify: whether to compare the digest, of the copy.

    Raises:
      CorruptProgramError: the file cannot be read, or has become shorter.
      DigestMismatchError: it has been altered.
    """
    descriptor = os.memfd_create(shard.file)
    try:
        copy = Path(f"/proc/self/fd/{descriptor}")
        try:
            with path.open("rb") as file:
                left = shard.size
                while left and (sent := os.sendfile(descriptor, file.fileno(), None, left)):
                    left -= sent
        except OSError as error:
            raise CorruptProgramError(f"cannot copy {path}: {error.strerror}") from error
        if left:
            raise CorruptProgramError(f"{path} became {left} bytes shorter while it was read")
        if verify == "full":
            _check_digest(copy, path, shard)
        yield copy
    finally:
        os.close(descriptor)


def _check_digest(path: Path, name: Path, shard: pb.Shard) -> None:
    if file_digest(path) != shard.sha256:
        raise DigestMismatchError(
            f"the {name.parent.name} {name} are not those that were written (SHA-256 differs); "
            "copy or build the program again"
        )


def open_shard(path: Path) -> safe_open:
    """Returns an opened safetensors file, mapped into memory. Raises: CorruptProgramError."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CorruptProgramError(f"{path} is not a safetensors file: {error}") from error
