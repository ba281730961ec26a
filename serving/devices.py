"""The devices that programs run on, and which of them a text means."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from slipway.program import Method
from slipway.serving.cuda import Cuda
from slipway.serving.errors import StartupError
from slipway.serving.host import Host
from slipway.serving.processors import Processors

__all__ = ["Device", "make_device", "resolve_device"]

Result = TypeVar("Result")


class Device(Protocol):
    """What the server needs of whatever computes. Safe for several threads."""

    @property
    def torch_device(self) -> torch.device:
        """Returns where the tensors lie that programs work on."""

    @property
    def takes_processors(self) -> bool:
        """Returns whether a batch keeps a processor of the host busy."""

    def prepare(self, call: Callable[[], Result]) -> Result:
        """Returns what `call` returns, which loads or verifies a program on the device."""

    def run(
        self, method: Method, tensors: Sequence[torch.Tensor], *, may_divide: bool = True
    ) -> tuple[list[torch.Tensor], float]:
        """Returns a method's outputs, on the host, and the seconds of processors that it took.

        Args:
          method: of a program on the device.
          tensors: its inputs, on the host.
          may_divide: whether it takes long enough for several processors to be of use.

        Raises:
          Exception: what the method raises, or torch of the device.
        """

    def available_memory(self) -> int:
        """Returns how many more bytes can be had."""

    def allocated_memory(self) -> int:
        """Returns how many bytes this process holds."""


def make_device(device: torch.device, processors: Processors, graph_bytes: int = 0) -> Device:
    """Returns a device to run programs on.

    Args:
      device: as `resolve_device` gives it.
      processors: of the host.
      graph_bytes: memory for CUDA graphs, on a device that has some; 0 for none.
    """
    return Host(processors) if device.type == "cpu" else Cuda(device, graph_bytes)


def resolve_device(text: str, setting: str = "--device") -> torch.device:
    """Returns the device that `text` asks for: `cpu`, `cuda`, `cuda:N` or `auto`.

    `auto` is `cuda:0` where CUDA works, else `cpu`.

    Args:
      text: the value of a setting.
      setting: what messages call the setting.

    Raises:
      StartupError: no such device on this machine, or no such form.
    """
    if text == "cpu":
        return torch.device("cpu")
    if text == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cuda(?::(0|[1-9][0-9]{0,3}))?", text)
    if match is None:
        raise StartupError(
            f"{setting} is {text!r}; it must be cpu, cuda:N with N from 0, or auto", exit_code=2
        )
    if torch.version.cuda is None:
        raise StartupError(
            f"{setting} is {text}, but torch {torch.__version__} was built without CUDA: "
            "use cpu, or build the server with --config=cuda (docs/serving.md#on-a-gpu)",
            exit_code=2,
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise StartupError(
            f"{setting} is {text}, but CUDA finds no device: is the driver installed, and does "
            "CUDA_VISIBLE_DEVICES leave one? auto falls back to the processor",
            exit_code=2,
        )
    index = int(match[1] or 0)
    if index >= count:
        raise StartupError(
            f"{setting} is {text}, but the devices that CUDA finds are cuda:0 to cuda:{count - 1}",
            exit_code=2,
        )
    return torch.device("cuda", index)
