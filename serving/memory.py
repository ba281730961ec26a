"""How much memory is left."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["allocated_memory", "available_memory"]

_CGROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> int:
    """Returns how many more bytes can be had on a device.

    On the host that is what the system can give without swapping, within the bound of the
    container, if there is one.
    """
    if device.type == "cuda":
        # What torch keeps of freed memory, it gives to whoever asks it for some.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    # https://docs.kernel.org/filesystems/proc.html: without swapping, in kibibytes.
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    try:
        # https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def allocated_memory(device: torch.device) -> int:
    """Returns how many bytes this process holds on a device.

    On the host that is what lies in memory, mapped weights included; on an accelerator, what torch
    has taken from it, whether tensors use it at the moment or not.
    """
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    # https://docs.kernel.org/filesystems/proc.html: in pages; the second is what is resident.
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
