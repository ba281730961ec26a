"""Weights on disk: how they are split, what is checked, and that the memory is the file's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from slipway.program.errors import CorruptProgramError, DigestMismatchError
from slipway.program.shards import shard_snapshot
from slipway.program.weights import read_weights, write_weights
from slipway.proto import program_pb2 as pb

CPU = torch.device("cpu")

# 400, 400, 40 and 1000 bytes.
TENSORS = {
    "a": torch.arange(100, dtype=torch.float32),
    "b": torch.arange(100, dtype=torch.int32),
    "c.d": torch.arange(5).reshape(5, 1),
    "e": torch.arange(250, dtype=torch.float32),
}


def contents(index: pb.WeightsIndex) -> list[list[str]]:
    return [
        [weight.name for weight in index.weights if weight.shard == number]
        for number in range(len(index.shards))
    ]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1 << 32, [["a", "b", "c.d", "e"]]),
        (840, [["a", "b", "c.d"], ["e"]]),
        (839, [["a", "b"], ["c.d"], ["e"]]),
        (1, [["a"], ["b"], ["c.d"], ["e"]]),
    ],
)
def test_shards_hold_what_they_may_and_no_more(
    tmp_path: Path, limit: int, expected: list[list[str]]
) -> None:
    index = write_weights(tmp_path, TENSORS, limit)
    assert contents(index) == expected
    assert len(list((tmp_path / "weights").iterdir())) == len(expected)
    for tensor, original in zip(read_weights(tmp_path, index, CPU), TENSORS.values(), strict=True):
        assert torch.equal(tensor, original)
        assert tensor.dtype == original.dtype


def test_an_index_may_list_weights_in_any_order(tmp_path: Path) -> None:
    index = write_weights(tmp_path, TENSORS, 840)
    listed = sorted(index.weights, key=lambda weight: weight.name, reverse=True)
    shuffled = pb.WeightsIndex(shards=index.shards, weights=listed)
    tensors = read_weights(tmp_path, shuffled, CPU)
    for weight, tensor in zip(listed, tensors, strict=True):
        assert torch.equal(tensor, TENSORS[weight.name])


def alter(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_sizes_does_not_read_the_tensors(tmp_path: Path) -> None:
    index = write_weights(tmp_path, TENSORS, 840)
    path = tmp_path / "weights" / index.shards[1].file
    alter(path, -1)
    with pytest.raises(DigestMismatchError, match=path.name):
        read_weights(tmp_path, index, CPU)
    *unaltered, altered = read_weights(tmp_path, index, CPU, "sizes")
    assert not torch.equal(altered, TENSORS["e"])
    assert torch.equal(unaltered[0], TENSORS["a"])


def test_sizes_refuses_another_length_and_other_tensors(tmp_path: Path) -> None:
    index = write_weights(tmp_path, TENSORS, 840)
    first, second = (tmp_path / "weights" / shard.file for shard in index.shards)
    content = second.read_bytes()
    second.write_bytes(content[:-1])
    with pytest.raises(CorruptProgramError, match=f"{len(content)} were written"):
        read_weights(tmp_path, index, CPU, "sizes")
    # A file of the right size with a header of something else.
    second.write_bytes(first.read_bytes().ljust(len(content), b"\0")[: len(content)])
    with pytest.raises(CorruptProgramError):
        read_weights(tmp_path, index, CPU, "sizes")


def test_weights_on_the_cpu_are_the_mapped_file(tmp_path: Path) -> None:
    index = write_weights(tmp_path, TENSORS)
    tensors = read_weights(tmp_path, index, CPU)
    mapped = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(index.shards[0].file)
    ]
    assert len(tensors) == len(TENSORS)
    for tensor in tensors:
        assert any(low <= tensor.data_ptr() < high for low, high in mapped)


def test_no_copy_of_the_files_stays_open(tmp_path: Path) -> None:
    index = write_weights(tmp_path, TENSORS, 840)
    before = os.listdir("/proc/self/fd")
    tensors = read_weights(tmp_path, index, CPU, snapshot=True)
    assert os.listdir("/proc/self/fd") == before
    for tensor, original in zip(tensors, TENSORS.values(), strict=True):
        assert torch.equal(tensor, original)
    index.shards[0].sha256 = b""
    with pytest.raises(DigestMismatchError):
        read_weights(tmp_path, index, CPU, snapshot=True)
    assert os.listdir("/proc/self/fd") == before


def test_a_file_that_becomes_shorter_while_it_is_copied_is_corrupt(tmp_path: Path) -> None:
    (shard,) = write_weights(tmp_path, TENSORS).shards
    path = tmp_path / "weights" / shard.file
    path.write_bytes(path.read_bytes()[:-3])
    with (
        pytest.raises(CorruptProgramError, match="became 3 bytes shorter while it was read"),
        shard_snapshot(path, shard, "sizes"),
    ):
        pass
