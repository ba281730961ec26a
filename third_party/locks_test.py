"""The lock for CUDA has what the other has, so that programs and servers are the same with both."""

from __future__ import annotations

import re
from pathlib import Path

_FOLDER = Path(__file__).parent
_LINE = re.compile(r"([a-z0-9.-]+)(={2,3})([^ ]+) ")
_HASH = re.compile(r"--hash=(\S+)")


def locked(name: str) -> dict[str, tuple[str, set[str]]]:
    """Returns the version and the hashes of each package of a lock."""
    found: dict[str, tuple[str, set[str]]] = {}
    hashes: set[str] = set()
    for line in (_FOLDER / name).read_text().splitlines():
        if match := _LINE.match(line):
            hashes = set()
            found[match[1]] = match[2] + match[3], hashes
        hashes.update(_HASH.findall(line))
    return found


def test_only_torch_differs_with_cuda() -> None:
    usual, with_cuda = locked("requirements.txt"), locked("cuda_requirements.txt")
    assert len(usual) > 20
    assert {name for name in usual if with_cuda.get(name) != usual[name]} == {"torch"}


def test_torch_is_the_same_release_in_another_build() -> None:
    version, hashes = locked("requirements.txt")["torch"]
    cuda_version, cuda_hashes = locked("cuda_requirements.txt")["torch"]
    assert version == "==2.13.0+cpu"
    # Three signs of equality: two would allow the other build.
    assert cuda_version == "===2.13.0"
    assert hashes
    assert cuda_hashes
    assert hashes.isdisjoint(cuda_hashes)
