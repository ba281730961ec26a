"""A CUDA device: batches side by side, and copies that overlap computation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from slipway.program import Method

__all__ = ["Cuda"]

Result = TypeVar("Result")


class Cuda:
    """A `Device`: each thread that runs batches has a stream of its own.

    So copies of one batch overlap the computation of another. Tensors are copied from and to memory
    that the system cannot move, which the device reads and writes by itself; torch keeps it for the
    next batch.
    """

    takes_processors = False

    def __init__(self, device: torch.device) -> None:
        """Makes a device.

        Args:
          device: with its index.
        """
        self.torch_device = device
        self._threads = threading.local()

    def prepare(self, call: Callable[[], Result]) -> Result:
        with torch.cuda.device(self.torch_device):
            result = call()
            # What was loaded is used by other streams from now on.
            torch.cuda.synchronize()
        return result

    def run(
        self, method: Method, tensors: Sequence[torch.Tensor], *, may_divide: bool = True
    ) -> tuple[list[torch.Tensor], float]:
        del may_divide  # a device divides as it sees fit
        started = time.thread_time()
        stream = self._stream()
        with torch.inference_mode(), torch.cuda.stream(stream):
            placed = [
                tensor.pin_memory().to(self.torch_device, non_blocking=True) for tensor in tensors
            ]
            outputs = [_to_host(output) for output in method.run(placed)]
            stream.synchronize()
        return outputs, time.thread_time() - started

    def available_memory(self) -> int:
        """Returns what the device has left, with what torch keeps of freed memory."""
        device = self.torch_device
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept

    def allocated_memory(self) -> int:
        """Returns what torch has taken, whether tensors use it at the moment or not."""
        return int(torch.cuda.memory_reserved(self.torch_device))

    def _stream(self) -> torch.cuda.Stream:
        stream: torch.cuda.Stream | None = getattr(self._threads, "stream", None)
        if stream is None:
            stream = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
            self._threads.stream = stream
        return stream


def _to_host(output: torch.Tensor) -> torch.Tensor:
    """Starts to copy an output; it is there once the stream has come so far."""
    received = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
    return received.copy_(output, non_blocking=True)
