"""Calls of programs recorded as CUDA graphs, which a device runs without the host's help.

To launch an operator takes the host some microseconds, often longer than the device needs for it. A
CUDA graph is launched at once with all operators of a call, for sizes and places in memory that
never change. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs has what cannot be
recorded: above all, whatever waits for the device, such as to look at a value.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch

from slipway.program import Method
from slipway.program.cases import difference
from slipway.serving.value_reads import find_value_read

__all__ = ["CudaGraph", "CudaGraphMemory", "CudaGraphRecorder"]

_LOGGER = logging.getLogger(__name__)

_TOLERANCE_FACTOR = 10
"""Of the tolerance of a dtype: libraries may take other kernels, which round otherwise."""

_RECORDING = threading.Lock()
"""Torch allows one recording at a time in a process, whatever the device."""

_unended: list[torch.cuda.CUDAGraph] = []
"""What could not be recorded to the end: whoever takes memory of the host still looks at these."""


class CudaGraphMemory:
    """The memory of a device that CUDA graphs may take. Safe for several threads.

    Attributes:
      recording: held while something is recorded: nobody may wait for the whole device then, and
        nothing else be recorded.
      device: with its index.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        """Makes it unused.

        Args:
          device: with its index.
          limit: bytes. Once they have as many, no more are recorded.
        """
        self.recording = _RECORDING
        self.device = device
        self._limit = limit
        self._used = 0
        # The garbage collector may end graphs at any time, in `add` as well.
        self._lock = threading.RLock()

    @functools.cached_property
    def stream(self) -> torch.cuda.Stream:
        """Returns the stream to record on, for whoever holds `recording`.

        Whatever anybody does on it meanwhile would be recorded, too. Those that threads run batches
        on will not do: torch has 32 of a priority and hands them out in turn, and when a thread
        frees memory of the host that its stream has copied to, torch records an event there.
        """
        return torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]

    @property
    def used(self) -> int:
        """Returns the bytes that graphs have."""
        return self._used

    @property
    def left(self) -> int:
        """Returns the bytes that more of them may have."""
        return self._limit - self._used

    def add(self, size: int) -> None:
        """Counts bytes that a graph has, or with a negative size, has no longer."""
        with self._lock:
            self._used += size


class CudaGraph:
    """One call, to be launched with other values. For the thread that has recorded it."""

    def __init__(
        self, graph: torch.cuda.CUDAGraph, inputs: list[torch.Tensor], outputs: list[torch.Tensor]
    ) -> None:
        """Makes it of what was recorded.

        Args:
          graph: the call.
          inputs: the tensors that it reads.
          outputs: the tensors that it writes, for `Method.finish`.
        """
        self._graph = graph
        self._inputs = inputs
        self._outputs = outputs

    def launch(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Launches the call on the current stream.

        Args:
          tensors: on the host, of the sizes that it was recorded with.

        Returns:
          What `Method.start` returns, for a while: the next launch of any graph of the method
          writes there again.
        """
        for place, tensor in zip(self._inputs, tensors, strict=True):
            place.copy_(tensor.pin_memory(), non_blocking=True)
        self._graph.replay()
        return self._outputs


class CudaGraphRecorder:
    """Records calls of one thread, which runs them on one stream."""

    def __init__(self, memory: CudaGraphMemory) -> None:
        """Makes a recorder.

        Args:
          memory: of the device.
        """
        self._memory = memory
        # Graphs of one method share the memory between their inputs and outputs, since they run one
        # after the other. It is freed with the last of them.
        self._pools: WeakKeyDictionary[Method, Any] = WeakKeyDictionary()

    def record(
        self, method: Method, tensors: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]
    ) -> CudaGraph | None:
        """Returns a graph of a call that gives what the call gave; None if there can be none.

        Args:
          method: that has run such calls.
          tensors: the call's inputs, on the host.
          expected: what `Method.start` gave, on the device, where it is there already.
        """
        memory = self._memory
        if method.changes_state or memory.left <= 0:
            return None
        try:
            with memory.recording:
                graph, size = self._recorded(method, tensors, expected)
        # The call itself has succeeded. Should the device be in error, the next one will say so.
        except Exception as error:
            _LOGGER.info("method '%s' runs without CUDA graphs: %s", method.contract.method, error)
            return None
        memory.add(size)
        finalize(graph, memory.add, -size)
        _LOGGER.info(
            "method '%s' has a CUDA graph for inputs of %s, with %d bytes",
            method.contract.method,
            ", ".join(str(list(tensor.shape)) for tensor in tensors),
            size,
        )
        return graph

    def _recorded(
        self, method: Method, tensors: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]
    ) -> tuple[CudaGraph, int]:
        """Returns a graph, and the bytes that it has. Raises: Exception, if there can be none."""
        memory = self._memory
        with torch.cuda.stream(memory.stream):
            # Made here, so that they are not given to anyone while something here still reads them.
            inputs = [tensor.to(memory.device) for tensor in tensors]
            # Libraries have things to prepare for each stream, which cannot be recorded either.
            reader = find_value_read(lambda: method.start(inputs))
            if reader is not None:
                raise RuntimeError(f"{reader} looks at values")
            memory.stream.synchronize()
            pool = self._pools.get(method)
            if pool is None:
                pool = self._pools[method] = torch.cuda.graph_pool_handle()
            before = _size(pool)
            graph = _capture(method, inputs, memory.device, pool)
        # Libraries may do otherwise while they are recorded; one look finds out.
        for index, output in enumerate(graph.launch(tensors)):
            name = f"output {index} of the graph"
            difference(output, expected[index], _TOLERANCE_FACTOR, name)
        return graph, _size(pool) - before


def _capture(
    method: Method, inputs: list[torch.Tensor], device: torch.device, pool: Any
) -> CudaGraph:
    captured = torch.cuda.CUDAGraph()
    try:
        # What other threads do meanwhile is on other streams.
        captured.capture_begin(pool, capture_error_mode="thread_local")
        try:
            outputs = method.start(inputs)
        finally:
            captured.capture_end()
    except Exception:
        # Where it cannot end, torch 2.13 goes on as if it were recording: it frees neither what the
        # pool has nor, when memory is short, all else that it keeps.
        with contextlib.suppress(RuntimeError):  # it has ended
            torch._C._cuda_endAllocateToPool(device.index, pool)
            torch._C._cuda_releasePool(device.index, pool)
            _unended.append(captured)
        raise
    return CudaGraph(captured, inputs, outputs)


def _size(pool: Any) -> int:
    """Returns the bytes that the graphs with a pool have, whatever others take meanwhile."""
    segments = torch.cuda.memory_snapshot(pool, include_traces=False)  # type: ignore[no-untyped-call]
    return sum(segment["total_size"] for segment in segments)
