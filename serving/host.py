"""The host as a device: its processors and its memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from slipway.program import Method
from slipway.serving.processors import Processors

__all__ = ["Host"]

Result = TypeVar("Result")

_CGROUP = Path("/sys/fs/cgroup")


class Host:
    """A `Device`: batches take processors, and their tensors lie where requests do."""

    torch_device = torch.device("cpu")
    takes_processors = True

    def __init__(self, processors: Processors) -> None:
        """Makes a device of processors that others may share."""
        self._processors = processors

    def prepare(self, call: Callable[[], Result]) -> Result:
        return self._processors.run(call)[0]

    def run(
        self, method: Method, tensors: Sequence[torch.Tensor], *, may_divide: bool = True
    ) -> tuple[list[torch.Tensor], float]:
        return self._processors.run(partial(_run, method, tensors), may_divide=may_divide)

    def available_memory(self) -> int:
        """Returns what the system can give without swapping, within the container's bound."""
        # https://docs.kernel.org/filesystems/proc.html: without swapping, in kibibytes.
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        free = int(available.split()[1]) * 1024
        try:
            # https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
            limit = (_CGROUP / "memory.max").read_text().strip()
            used = int((_CGROUP / "memory.current").read_text())
        except (OSError, ValueError):
            return free
        return free if limit == "max" else min(free, int(limit) - used)

    def allocated_memory(self) -> int:
        """Returns what of this process lies in memory, mapped weights included."""
        # https://docs.kernel.org/filesystems/proc.html: in pages; the second is what is resident.
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def _run(method: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return method.run(tensors)
