"""Regions of system shared memory that clients register: tensors that do not travel in messages.

A region is a file below /dev/shm, which client and server see on one machine. What lies in it is
copied with `pread` and `pwrite` rather than through a mapping: a client may cut its file short at
any moment, and a mapping would answer that with a signal that ends the server.

A client names the file, so it could name another program's. Only plain names are taken, no links
are followed, and the file must belong to the user that the server runs as.
"""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass, field

from slipway.serving.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    ResourceExhaustedError,
    quoted,
)

__all__ = ["Region", "RegionReference", "RegionSlice", "SharedMemoryRegions"]

_DIRECTORY = "/dev/shm"

_MAX_REGIONS = 256
"""Each is an open file."""


@dataclass(frozen=True, slots=True)
class RegionReference:
    """Where a request says that a tensor lies.

    Attributes:
      region: the name that the region was registered by.
      offset: from the region's start, in bytes.
      size: in bytes.
    """

    region: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Region:
    """A region that a client has registered.

    Attributes:
      name: what requests call it.
      key: the name of its file, as the client gave it.
      offset: where it starts in the file, in bytes.
      size: in bytes.
    """

    name: str
    key: str
    offset: int
    size: int
    _file: _File = field(repr=False)


@dataclass(frozen=True, slots=True)
class RegionSlice:
    """A tensor's place in a region. It stays usable when the region is unregistered.

    Attributes:
      nbytes: the size of the place.
    """

    nbytes: int
    _region: Region
    _offset: int

    def read(self) -> memoryview:
        """Returns a copy of what is there now.

        Raises:
          InvalidRequestError: the file has become too short.
        """
        content = memoryview(bytearray(self.nbytes))
        position = 0
        while position < self.nbytes:
            count = os.preadv(
                self._region._file.descriptor, [content[position:]], self._offset + position
            )
            if not count:
                raise self._too_short()
            position += count
        return content

    def write(self, content: memoryview) -> None:
        """Writes `content`, which may be shorter than the place, to its start.

        Raises:
          InvalidRequestError: `content` is larger than the place, or the file has become too short.
          ResourceExhaustedError: the system has no memory for what is written.
        """
        if content.nbytes > self.nbytes:
            raise InvalidRequestError(
                f"shared memory size specified with the request ({self.nbytes} bytes of region "
                f"{quoted(self._region.name)}) should be at least {content.nbytes} bytes to hold "
                "the results"
            )
        descriptor = self._region._file.descriptor
        if os.fstat(descriptor).st_size < self._offset + content.nbytes:
            raise self._too_short()  # to write would make it longer
        position = 0
        while position < content.nbytes:
            try:
                position += os.pwrite(descriptor, content[position:], self._offset + position)
            except OSError as error:
                # A file without holes has its memory; one that was only made long has not.
                raise ResourceExhaustedError(
                    f"cannot write {content.nbytes} bytes to shared memory region "
                    f"{quoted(self._region.name)}: {error.strerror}; a region whose file was "
                    "written to, or made with posix_fallocate, has memory of its own"
                ) from error

    def _too_short(self) -> InvalidRequestError:
        return InvalidRequestError(
            f"shared memory region {quoted(self._region.name)} is not what was registered any "
            f"more: the file {quoted(self._region.key)} has been cut short"
        )


class SharedMemoryRegions:
    """The regions that clients have registered. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Opens a region.

        Args:
          name: what requests will call it.
          key: the name of a file directly below /dev/shm; it may start with a slash.
          offset: where the region starts in the file, in bytes.
          size: in bytes.

        Raises:
          AlreadyExistsError: there is a region of this name.
          InvalidRequestError: there is no such file, it is none that the server may use, or it is
            too short.
          ResourceExhaustedError: there are too many regions.
        """
        if not name:
            raise InvalidRequestError("a shared memory region needs a name: set name")
        file = _File(_open(key))
        end = os.fstat(file.descriptor).st_size
        if size < 1 or offset + size > end:
            raise InvalidRequestError(
                f"failed to register shared memory region {quoted(name)}: it is bytes {offset} to "
                f"{offset + size} of {quoted(key)}, which has {end} bytes; it must have one byte "
                "at least, and end where the file ends or before"
            )
        with self._lock:
            if name in self._regions:
                raise AlreadyExistsError(
                    f"shared memory region {quoted(name)} already in manager: unregister it first, "
                    "or take another name"
                )
            if len(self._regions) >= _MAX_REGIONS:
                raise ResourceExhaustedError(
                    f"{_MAX_REGIONS} shared memory regions are registered, and no more may be: "
                    "unregister one"
                )
            self._regions[name] = Region(name, key, offset, size, file)

    def unregister(self, name: str) -> None:
        """Forgets a region if there is one of this name, or all for the name ""."""
        with self._lock:
            if name:
                self._regions.pop(name, None)
            else:
                self._regions.clear()

    def find(self, name: str) -> list[Region]:
        """Returns the region of this name, or all for the name "".

        Raises:
          NotFoundError: there is none.
        """
        with self._lock:
            if not name:
                return list(self._regions.values())
            if name in self._regions:
                return [self._regions[name]]
        raise _not_found(name)

    def locate(self, reference: RegionReference) -> RegionSlice:
        """Returns the place that a request means.

        Raises:
          NotFoundError: no region of that name is registered.
          InvalidRequestError: the place is not within the region.
        """
        with self._lock:
            region = self._regions.get(reference.region)
        if region is None:
            raise _not_found(reference.region)
        if reference.offset < 0 or reference.size < 0:
            raise InvalidRequestError(
                f"Invalid offset or size for shared memory region {quoted(region.name)}: "
                f"{reference.offset} and {reference.size} must not be negative"
            )
        if reference.offset + reference.size > region.size:
            raise InvalidRequestError(
                f"Invalid offset + byte size for shared memory region {quoted(region.name)}: "
                f"{reference.offset} + {reference.size} is more than its {region.size} bytes"
            )
        return RegionSlice(reference.size, region, region.offset + reference.offset)


class _File:
    """An open file, closed when nobody has it any more: neither a registration nor a request."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def _open(key: str) -> int:
    name = key.removeprefix("/")
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise InvalidRequestError(
            f"Unable to open shared memory region: {quoted(key)} is not the name of a file "
            "directly in /dev/shm, such as '/my_region'"
        )
    try:
        # Neither what is not a file nor whoever has a lease of one is waited for, and no terminal
        # is taken.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(f"{_DIRECTORY}/{name}", flags)
    except OSError as error:
        raise InvalidRequestError(
            f"Unable to open shared memory region: {quoted(key)}: {error.strerror}"
        ) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise InvalidRequestError(
            f"Unable to open shared memory region: {quoted(key)} must be a file of the user that "
            "the server runs as: run client and server as one user"
        )
    return descriptor


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(
        f"Unable to find shared memory region: {quoted(name)}; register it with "
        "SystemSharedMemoryRegister"
    )
