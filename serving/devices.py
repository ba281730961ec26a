"""Which device programs run on."""

from __future__ import annotations

import re

import torch

from slipway.serving.errors import StartupError

__all__ = ["resolve_device"]


def resolve_device(text: str) -> torch.device:
    """Returns the device that `text` asks for: `cpu`, `cuda`, `cuda:N` or `auto`.

    `auto` is `cuda:0` where CUDA works, else `cpu`.

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
            f"--device is {text!r}; it must be cpu, cuda:N with N from 0, or auto", exit_code=2
        )
    if torch.version.cuda is None:
        raise StartupError(
            f"--device is {text}, but torch {torch.__version__} was built without CUDA: "
            "use --device=cpu, or lock a CUDA build of torch",
            exit_code=2,
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise StartupError(
            f"--device is {text}, but CUDA finds no device: is the driver installed, and does "
            "CUDA_VISIBLE_DEVICES leave one? --device=auto falls back to the processor",
            exit_code=2,
        )
    index = int(match[1] or 0)
    if index >= count:
        raise StartupError(
            f"--device is {text}, but the devices that CUDA finds are cuda:0 to cuda:{count - 1}",
            exit_code=2,
        )
    return torch.device("cuda", index)
