"""A CUDA device: batches side by side, copies that overlap computation, and CUDA graphs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from slipway.program import Method
from slipway.serving.cuda_graphs import CudaGraph, CudaGraphMemory, CudaGraphRecorder
from slipway.serving.recurring_calls import RecurringCalls

__all__ = ["Cuda"]

Result = TypeVar("Result")


class Cuda:
    """A `Device`: each thread that runs batches has a stream of its own.

    So copies of one batch overlap the computation of another. Tensors are copied from and to memory
    that the system cannot move, which the device reads and writes by itself; torch keeps it for the
    next batch.
    """

    takes_processors = False

    def __init__(self, device: torch.device, graph_bytes: int = 0) -> None:
        """Makes a device.

        Args:
          device: with its index.
          graph_bytes: memory for CUDA graphs of calls that recur; 0 for none.
        """
        self.torch_device = device
        self._graph_memory = CudaGraphMemory(device, graph_bytes)
        self._threads = threading.local()

    def prepare(self, call: Callable[[], Result]) -> Result:
        with torch.cuda.device(self.torch_device):
            result = call()
            # What was loaded is used by other streams from now on.
            with self._graph_memory.recording:
                torch.cuda.synchronize()
        return result

    def run(
        self, method: Method, tensors: Sequence[torch.Tensor], *, may_divide: bool = True
    ) -> tuple[list[torch.Tensor], float]:
        del may_divide  # a device divides as it sees fit
        started = time.thread_time()
        thread = self._thread()
        with torch.inference_mode(), torch.cuda.stream(thread.stream):
            graph = thread.graphs.find(method, tensors)
            if graph is not None:
                results = graph.launch(tensors)
            else:
                results = method.start([self._to_device(tensor) for tensor in tensors])
            received = [_to_host(result) for result in results]
            thread.stream.synchronize()
            outputs = method.finish(received)
            if (
                graph is None
                and self._graph_memory.left > 0
                and thread.graphs.is_due(method, tensors)
            ):
                recorded = thread.recorder.record(method, tensors, results)
                thread.graphs.add(method, tensors, recorded)
        return outputs, time.thread_time() - started

    def available_memory(self) -> int:
        """Returns what the device has left, with what torch keeps of freed memory."""
        device = self.torch_device
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        # Between calls the memory of graphs seems free.
        kept = max(0, kept - self._graph_memory.used)
        return int(torch.cuda.mem_get_info(device)[0]) + kept

    def allocated_memory(self) -> int:
        """Returns what torch has taken, whether tensors use it at the moment or not."""
        return int(torch.cuda.memory_reserved(self.torch_device))

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(self.torch_device, non_blocking=True)

    def _thread(self) -> _Thread:
        thread: _Thread | None = getattr(self._threads, "thread", None)
        if thread is None:
            thread = self._threads.thread = _Thread(self.torch_device, self._graph_memory)
        return thread


class _Thread:
    """What a thread that runs batches has for itself."""

    def __init__(self, device: torch.device, memory: CudaGraphMemory) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.recorder = CudaGraphRecorder(memory)
        self.graphs: RecurringCalls[CudaGraph] = RecurringCalls()


def _to_host(output: torch.Tensor) -> torch.Tensor:
    """Starts to copy an output; it is there once the stream has come so far."""
    # Of a view with other signs, torch would change the signs of the copy, without waiting for it.
    output = output.resolve_conj().resolve_neg()
    received = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
    return received.copy_(output, non_blocking=True)
