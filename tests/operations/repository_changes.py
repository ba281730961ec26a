"""Changes of a repository with the model `affine`, and whether a server has followed them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from google.protobuf.message import Message

from slipway.proto import open_inference_pb2 as protocol
from slipway.tests.operations.load import open_channel, wait_until
from slipway.tests.serving.programs import write_affine, write_echo, write_power

_SERVICE = "/inference.GRPCInferenceService/"


class Control:
    """Asks a server about its repository, and to load models from it.

    Attributes:
      is_explicit: whether it loads when asked; else it looks by itself.
    """

    def __init__(self, address: str, is_explicit: bool = False) -> None:
        self.is_explicit = is_explicit
        self._channel = open_channel(address)

    def index(self) -> dict[str, tuple[str, str]]:
        """Returns the state and the reason of each version of `affine`."""
        data = self._call("RepositoryIndex", protocol.RepositoryIndexRequest())
        response = protocol.RepositoryIndexResponse.FromString(data)
        return {
            item.version: (item.state, item.reason)
            for item in response.models
            if item.name == "affine"
        }

    def follow(self) -> None:
        """Has the server look at the repository, if it does not do so by itself."""
        if not self.is_explicit:
            return
        try:
            self._call(
                "RepositoryModelLoad", protocol.RepositoryModelLoadRequest(model_name="affine")
            )
        except grpc.RpcError as error:
            # What cannot be loaded is in the index, with its reason.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise

    def unload(self) -> None:
        """Has the server unload `affine`."""
        request = protocol.RepositoryModelUnloadRequest(model_name="affine")
        self._call("RepositoryModelUnload", request)

    def await_index(self, holds: Callable[[dict[str, tuple[str, str]]], bool], what: str) -> None:
        """Waits until the index is as it should be. Raises: TimeoutError."""
        wait_until(lambda: holds(self.index()), f"{what}; the index is {self.index()}")

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: str, request: Message) -> bytes:
        answer: bytes = self._channel.unary_unary(_SERVICE + method)(
            request.SerializeToString(), timeout=120
        )
        return answer


def make_repository(root: Path) -> None:
    """Writes version 1 of `affine`, `echo` and `power`."""
    write_affine(root / "affine" / "1")
    write_echo(root / "echo" / "1")
    write_power(root / "power" / "1")


def damage(version: Path) -> None:
    """Makes a version one that cannot be loaded."""
    with (version / "program.pb").open("ab") as file:
        file.write(b"x")


def is_ready(version: int) -> Callable[[dict[str, tuple[str, str]]], bool]:
    """Returns a condition of an index: the version takes requests, as its files are."""
    return lambda index: index.get(str(version)) == ("READY", "")


def is_gone(version: int) -> Callable[[dict[str, tuple[str, str]]], bool]:
    """Returns a condition of an index: there is no such version."""
    return lambda index: str(version) not in index


def has_reason(version: int) -> Callable[[dict[str, tuple[str, str]]], bool]:
    """Returns a condition of an index: the version, or its newest content, is not served."""
    return lambda index: bool(index.get(str(version), ("", ""))[1])


def changes(root: Path, control: Control) -> Iterator[str]:
    """Makes one change after another, without end, and says which, once the server has followed.

    Every version is whole when it appears under its name, since it is moved there; what a server
    makes of one that is being copied is for the tests of the repository.
    """
    model = root / "affine"
    number = 1
    while True:
        number += 1
        new = model / str(number)
        _place(new, scale=float(number))
        yield from _followed(control, is_ready(number), f"added version {number}")

        broken = model / str(number + 1)
        _place(broken, scale=99.0, damaged=True)
        yield from _followed(control, has_reason(number + 1), f"added broken version {number + 1}")
        shutil.rmtree(broken)
        yield from _followed(control, is_gone(number + 1), f"removed version {number + 1}")

        _replace(new, scale=number + 0.5)
        yield from _followed(control, is_ready(number), f"replaced version {number}")
        damage(new)
        yield from _followed(control, has_reason(number), f"damaged version {number}")

        shutil.rmtree(new)
        yield from _followed(control, is_gone(number), f"rolled back to version {number - 1}")
        _place(new, scale=float(number))
        yield from _followed(control, is_ready(number), f"added version {number} again")

        shutil.rmtree(model / str(number - 1))
        yield from _followed(control, is_gone(number - 1), f"removed version {number - 1}")


def _followed(
    control: Control, holds: Callable[[dict[str, tuple[str, str]]], bool], what: str
) -> Iterator[str]:
    control.follow()
    control.await_index(holds, f"what follows from: {what}")
    yield what


def _place(version: Path, scale: float, damaged: bool = False) -> None:
    """Writes a version beside its place, and moves it there at once."""
    hidden = version.parent / f".new-{version.name}"
    write_affine(hidden, scale=scale)
    if damaged:
        damage(hidden)
    hidden.rename(version)


def _replace(version: Path, scale: float) -> None:
    old = version.parent / f".old-{version.name}"
    hidden = version.parent / f".new-{version.name}"
    write_affine(hidden, scale=scale)
    version.rename(old)
    hidden.rename(version)
    shutil.rmtree(old)
