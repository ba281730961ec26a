"""Regions and places in them; //tests/serving has the same as clients see it."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipway.serving.errors import InvalidRequestError
from slipway.serving.shared_memory import RegionReference, SharedMemoryRegions


@pytest.fixture
def path() -> Iterator[Path]:
    """A file of 16 bytes."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(bytes(16))
        file.flush()
        yield Path(file.name)


def test_what_is_written_may_fill_its_place_but_no_more(path: Path) -> None:
    regions = SharedMemoryRegions()
    regions.register("r", path.name, 4, 12)
    place = regions.locate(RegionReference("r", 2, 3))
    place.write(memoryview(b"abc"))
    assert path.read_bytes() == bytes(6) + b"abc" + bytes(7)
    assert place.read() == b"abc"
    with pytest.raises(InvalidRequestError, match="should be at least 4 bytes"):
        place.write(memoryview(b"abcd"))


def test_a_file_is_never_made_longer(path: Path) -> None:
    regions = SharedMemoryRegions()
    regions.register("r", path.name, 4, 12)
    place = regions.locate(RegionReference("r", 8, 4))
    path.write_bytes(bytes(15))
    with pytest.raises(InvalidRequestError, match="has been cut short"):
        place.write(memoryview(b"abcd"))
    with pytest.raises(InvalidRequestError, match="has been cut short"):
        place.read()
    assert path.read_bytes() == bytes(15)


@pytest.mark.parametrize(("offset", "size"), [(-1, 4), (0, -1)])
def test_a_place_is_not_negative(path: Path, offset: int, size: int) -> None:
    regions = SharedMemoryRegions()
    regions.register("r", path.name, 4, 12)
    with pytest.raises(InvalidRequestError, match="must not be negative"):
        regions.locate(RegionReference("r", offset, size))


@pytest.mark.parametrize(
    ("name", "offset", "size", "message"),
    [
        ("", 0, 12, "needs a name"),
        ("r", 5, 12, "which has 16 bytes"),
        ("r", 2**64 - 1, 12, "which has 16 bytes"),
        ("r", 0, 0, "must have one byte at least"),
    ],
)
def test_what_cannot_be_registered(
    path: Path, name: str, offset: int, size: int, message: str
) -> None:
    regions = SharedMemoryRegions()
    with pytest.raises(InvalidRequestError, match=message):
        regions.register(name, path.name, offset, size)
    assert regions.find("") == []


def test_a_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(InvalidRequestError, match="must be a file of the user that the server"):
        SharedMemoryRegions().register("r", path.name, 0, 1)


def test_a_client_that_holds_its_file_back_is_not_waited_for() -> None:
    # The system asks whoever has a lease to give it up, and gives it 45 seconds for that.
    usual = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            with pytest.raises(InvalidRequestError, match="temporarily unavailable"):
                SharedMemoryRegions().register("r", Path(file.name).name, 0, 1)
    finally:
        signal.signal(signal.SIGIO, usual)


def test_no_descriptor_is_left(path: Path) -> None:
    regions = SharedMemoryRegions()
    before = os.listdir("/proc/self/fd")
    for size in (12, 13):  # which is one too many
        with contextlib.suppress(InvalidRequestError):
            regions.register("r", path.name, 4, size)
    pipe = path.with_suffix(".pipe")
    os.mkfifo(pipe)
    try:
        with pytest.raises(InvalidRequestError, match="must be a file of the user"):
            regions.register("pipe", pipe.name, 0, 1)
    finally:
        pipe.unlink()
    regions.unregister("")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == len(before)
