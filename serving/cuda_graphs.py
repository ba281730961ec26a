"""Calls of programs recorded as CUDA graphs, which a device runs without the host's help.

To launch an operator takes the host some microseconds, often longer than the device needs for it. A
CUDA graph is launched at once with all operators of a call, for sizes and places in memory that
never change. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs has what cannot be
recorded: above all, whatever waits for the device, such as to look at a value.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch

from slipway.program import Method
from slipway.program.cases import difference
from slipway.program.errors import SlipwayError
from slipway.serving.value_reads import find_value_read

__all__ = ["CudaGraph", "CudaGraphMemory", "CudaGraphRecorder"]

_LOGGER = logging.getLogger(__name__)

_TOLERANCE_FACTOR = 10
"""Of the tolerance of a dtype: libraries may take other kernels, which round otherwise."""


class CudaGraphMemory:
    """The memory of a device that CUDA graphs may take. Safe for several threads.

    Attributes:
      recording: held while something is recorded: nobody may wait for the whole device then, and
        nothing else be recorded.
    """

    def __init__(self, limit: int) -> None:
        """Makes it unused.

        Args:
          limit: bytes. Once they have as many, no more are recorded.
        """
        self.recording = threading.Lock()
        self._limit = limit
        self._used = 0
        self._lock = threading.Lock()

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

    def __init__(self, stream: torch.cuda.Stream, memory: CudaGraphMemory) -> None:
        """Makes a recorder.

        Args:
          stream: of the thread.
          memory: of the device.
        """
        self._stream = stream
        self._memory = memory
        # Graphs of one method share the memory between their inputs and outputs, since they run one
        # after the other. It is freed with the last of them.
        self._pools: WeakKeyDictionary[Method, Any] = WeakKeyDictionary()

    def record(
        self, method: Method, tensors: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]
    ) -> CudaGraph | None:
        """Returns a graph of a call that gives what the call gave; None if there can be none.

        Args:
          method: that has run such calls on the stream, which is the current one.
          tensors: the call's inputs, on the host.
          expected: what `Method.start` gave, on the device.
        """
        memory, device = self._memory, self._stream.device
        if method.changes_state or memory.left <= 0:
            return None
        inputs = [tensor.to(device) for tensor in tensors]
        reader = find_value_read(lambda: method.start(inputs))
        if reader is not None:
            _log_without(method, f"{reader} looks at values")
            return None
        with memory.recording:
            before = torch.cuda.memory_reserved(device)
            try:
                graph = self._capture(method, inputs)
                # Libraries may do otherwise while they are recorded; one look finds out.
                for index, output in enumerate(graph.launch(tensors)):
                    name = f"output {index} of the graph"
                    difference(output, expected[index], _TOLERANCE_FACTOR, name)
            except (RuntimeError, ValueError, IndexError, SlipwayError) as error:
                # Should the device be in error, the next call will say so. Torch 2.13 never frees
                # what a recording that fails has taken, so that it counts for good.
                memory.add(max(0, torch.cuda.memory_reserved(device) - before))
                _log_without(method, error)
                return None
            size = max(0, torch.cuda.memory_reserved(device) - before)
        memory.add(size)
        finalize(graph, memory.add, -size)
        _LOGGER.info(
            "method '%s' has a CUDA graph for inputs of %s, with %d bytes",
            method.contract.method,
            ", ".join(str(list(tensor.shape)) for tensor in tensors),
            size,
        )
        return graph

    def _capture(self, method: Method, inputs: list[torch.Tensor]) -> CudaGraph:
        pool = self._pools.get(method)
        if pool is None:
            pool = self._pools[method] = torch.cuda.graph_pool_handle()
        self._stream.synchronize()
        captured = torch.cuda.CUDAGraph()
        # What other threads do meanwhile is on streams of their own.
        captured.capture_begin(pool, capture_error_mode="thread_local")
        try:
            outputs = method.start(inputs)
        finally:
            captured.capture_end()
        return CudaGraph(captured, inputs, outputs)


def _log_without(method: Method, reason: object) -> None:
    _LOGGER.info("method '%s' runs without CUDA graphs: %s", method.contract.method, reason)
