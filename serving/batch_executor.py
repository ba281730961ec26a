"""Runs a batch of requests as one call of the model, and gives each caller its own rows."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import torch

from slipway.program import Contract
from slipway.program.expressions import symbols_of
from slipway.program.torch_types import to_torch
from slipway.program.words import counted
from slipway.serving.errors import (
    CancelledError,
    DeadlineError,
    DeviceError,
    InternalError,
    ResourceExhaustedError,
    ServingError,
)
from slipway.serving.instance import Instance
from slipway.serving.request_queue import PendingRequest, log_context
from slipway.serving.statistics import ModelStatistics, StageTimes
from slipway.serving.tensors import make_batch, make_tensor, tensor_contents

__all__ = ["BatchExecutor"]

_LOGGER = logging.getLogger(__name__)

_KEPT_BINDINGS = 16
_KEPT_SHAPES = 256

_Part = tuple[tuple[int, ...], memoryview]
"""The shape and the elements of one output for one request."""

_Results = tuple[list[tuple[int, ...]], list[memoryview]]
"""The same of all outputs."""


class BatchExecutor:
    """Runs requests of one model. Every request that it is given is answered.

    Attributes:
      contract: of the method that it runs.
      statistics: of the model.
      max_rows: of a batch of several requests, as the contract bounds it; 1 if it allows none.
    """

    def __init__(self, instance: Instance, contract: Contract, statistics: ModelStatistics) -> None:
        self.contract = contract
        self.statistics = statistics
        self._instance = instance
        self._recent: dict[tuple[int, ...], None] = {}
        self.max_rows = 1
        self._recent_lock = threading.Lock()
        self._batch_symbol = 0
        self._input_axes: tuple[int, ...] = ()
        self._output_axes: tuple[int, ...] = ()
        self._paddings: list[int] = []
        # What to pad each input with, along each dimension that is padded.
        self._values: list[dict[int, float]] = [{} for _ in contract.tensor_inputs]
        self._is_padded = [False] * len(contract.tensor_outputs)
        self._dtypes = [to_torch(spec.dtype) for spec in contract.tensor_outputs.values()]
        self._shapes_of = lru_cache(_KEPT_SHAPES)(self._shapes)
        batching = contract.batching
        if batching is not None:
            names = [symbol.name for symbol in contract.symbols]
            self._batch_symbol = names.index(batching.symbol)
            self.max_rows = contract.symbols[self._batch_symbol].maximum or sys.maxsize
            self._input_axes = tuple(batching.inputs.values())
            self._output_axes = batching.outputs
            self._paddings = [names.index(padding.symbol) for padding in batching.paddings]
            self._is_padded = [
                any(
                    reference.index in self._paddings
                    for size in spec.shape
                    for reference in symbols_of(size)
                )
                for spec in contract.tensor_outputs.values()
            ]
            for symbol, padding in zip(self._paddings, batching.paddings, strict=True):
                for values, (name, spec) in zip(
                    self._values, contract.tensor_inputs.items(), strict=True
                ):
                    for dimension, size in enumerate(spec.shape):
                        if any(reference.index == symbol for reference in symbols_of(size)):
                            values[dimension] = padding.values[name]

    @property
    def subject(self) -> str:
        """Returns what messages call the model."""
        return self._instance.subject

    def execute(
        self, batch: Sequence[PendingRequest], *, is_quick: bool = False
    ) -> StageTimes | None:
        """Runs requests that can share a batch, and answers each of them.

        Returns how long that took; None if it failed.

        A batch that fails is run again one by one, so that a request with values that the model
        cannot take fails alone.

        Args:
          batch: the requests.
          is_quick: whether the model takes less time than it takes to wake a thread.

        Raises:
          ResourceExhaustedError: there was no memory for them together; each was answered all the
            same.
          DeviceError: the device failed for good; they were answered with it.
        """
        times = StageTimes()
        started = time.monotonic()
        rows = sum(pending.rows for pending in batch)
        for pending in batch:
            if pending.record is not None:
                pending.record.ran(started, times, rows, len(batch))
        try:
            results = self._run(batch, times, is_quick)
        except DeviceError as error:
            for pending in batch:
                self.fail(pending, error)
            raise
        except Exception as error:
            failure = error
        else:
            done = [
                pending
                for pending, (shapes, contents) in zip(batch, results, strict=True)
                if self._answer(pending, shapes, contents)
            ]
            answered = time.monotonic()
            times.output = answered - started - times.input - times.compute
            waits = [started - pending.arrived for pending in done]
            totals = [answered - pending.arrived for pending in done]
            self.statistics.executed(rows, waits, totals, times)
            for pending in done:
                if pending.record is not None:
                    pending.record.finish(None)
            return times
        try:
            self._recover(batch, failure)
        finally:
            del failure  # it holds this frame, and so the requests
        return None

    @property
    def recent_bindings(self) -> list[tuple[int, ...]]:
        """Returns the values of the contract's symbols in the latest batches, each once."""
        with self._recent_lock:
            return list(self._recent)

    def warm_up(self, bindings: Iterable[tuple[int, ...]]) -> None:
        """Runs the model on zeros of these sizes, so that the first requests need not wait.

        Args:
          bindings: values of the contract's symbols; those that it forbids are passed over.
        """
        for binding in bindings:
            if len(binding) != len(self.contract.symbols) or not self.contract.is_legal(binding):
                continue
            tensors = [
                torch.zeros(
                    [size.evaluate(binding) for size in spec.shape],
                    dtype=to_torch(spec.dtype),
                )
                for spec in self.contract.tensor_inputs.values()
            ]
            try:
                self._instance.run(tensors)
            except ServingError:
                pass  # zeros may mean nothing to the model
            else:
                with self._recent_lock:
                    self._recent[binding] = None

    def release(self) -> None:
        """Lets go of the program; no batch may come any more."""
        self._instance.release()

    def drop(self, pending: PendingRequest, by: float) -> bool:
        """Answers a request that is not to be run, and returns whether it is such a one.

        Args:
          pending: the request. Nobody wants its result if its client has gone.
          by: when it would be answered, by the monotonic clock; its time may be over then.
        """
        if pending.reply.cancelled:
            self.forget(pending)
        elif pending.expires <= by:
            self.fail(pending, self.deadline_error(pending))
        else:
            return False
        return True

    def deadline_error(self, pending: PendingRequest) -> DeadlineError:
        """Returns what to answer to a request whose time was over before its turn."""
        return DeadlineError(
            f"{self.subject}: the request's time was over before its turn came; it waited for "
            f"{time.monotonic() - pending.arrived:.3g} seconds, and was not run"
        )

    def fail(self, pending: PendingRequest, error: ServingError) -> None:
        """Answers a request with an error."""
        _LOGGER.info(
            "%s: %s: %s",
            pending.reply.method,
            error.status.name,
            error,
            extra=log_context(pending.reply, pending.request.identifier),
        )
        self._count_failure(pending, error)
        pending.reply.fail(error)

    def forget(self, pending: PendingRequest) -> None:
        """Counts a request whose client has gone."""
        self._count_failure(pending, CancelledError("the client has gone"))

    def _count_failure(self, pending: PendingRequest, error: ServingError) -> None:
        self.statistics.failed(time.monotonic() - pending.arrived, error)
        if pending.record is not None:
            pending.record.finish(error)

    def _recover(self, batch: Sequence[PendingRequest], failure: Exception) -> None:
        """Runs requests one by one that have failed together; answers one that has failed alone."""
        if len(batch) > 1:
            _LOGGER.info("%s: running %d requests one by one", self.subject, len(batch))
            for index, pending in enumerate(batch):
                if self.drop(pending, time.monotonic()):
                    continue  # the others may have taken long
                try:
                    self.execute([pending])
                except DeviceError as error:
                    for rest in batch[index + 1 :]:
                        self.fail(rest, error)
                    raise
            if isinstance(failure, ResourceExhaustedError):
                raise failure
            return
        if not isinstance(failure, ServingError):
            _LOGGER.error("%s failed", self.subject, exc_info=failure)
            failure = self._internal_error()
        self.fail(batch[0], failure)

    def _internal_error(self) -> InternalError:
        return InternalError(f"{self.subject} failed; the server's log has the cause")

    def _answer(
        self, pending: PendingRequest, shapes: list[tuple[int, ...]], contents: list[memoryview]
    ) -> bool:
        """Answers a request with its results, and returns whether that was possible."""
        request = pending.request
        try:
            message = request.response(shapes, contents)
        except ServingError as error:
            self.fail(pending, error)
            return False
        except MemoryError:
            self.fail(pending, ResourceExhaustedError(f"{self.subject}: no memory for the answer"))
            return False
        except Exception:
            # The others in the batch have answers to get.
            _LOGGER.exception("%s: a request could not be answered", self.subject)
            self.fail(pending, self._internal_error())
            return False
        pending.reply.respond(message)
        return True

    def _run(
        self, batch: Sequence[PendingRequest], times: StageTimes, is_quick: bool
    ) -> list[_Results]:
        started = time.monotonic()
        binding = self._binding(batch)
        if binding not in self._recent:
            with self._recent_lock:
                while len(self._recent) >= _KEPT_BINDINGS:
                    del self._recent[next(iter(self._recent))]
                self._recent[binding] = None
        tensors = self._inputs(batch, binding)
        staged = time.monotonic()
        outputs, times.processor = self._instance.run(tensors, may_divide=not is_quick)
        times.input, times.compute = staged - started, time.monotonic() - staged
        self._check(outputs, binding)
        if len(batch) == 1:
            shapes = [tuple(output.shape) for output in outputs]
            return [(shapes, [tensor_contents(output) for output in outputs])]
        rows = [pending.rows for pending in batch]
        results: list[_Results] = [([], []) for _ in batch]
        for index, (output, axis) in enumerate(zip(outputs, self._output_axes, strict=True)):
            if self._is_padded[index]:
                parts = self._cut(output, index, batch)
            elif axis:
                parts = _described(torch.split(output, rows, dim=axis))
            else:
                parts = _slices(output, rows)
            for (shapes, contents), (shape, content) in zip(results, parts, strict=True):
                shapes.append(shape)
                contents.append(content)
        return results

    def _binding(self, batch: Sequence[PendingRequest]) -> tuple[int, ...]:
        """Returns the values of the contract's symbols for a batch."""
        if len(batch) == 1:
            return batch[0].request.plan.binding
        binding = list(self.binding(batch[0], sum(pending.rows for pending in batch)))
        for index in self._paddings:
            binding[index] = max(pending.request.plan.binding[index] for pending in batch)
        return tuple(binding)

    def _inputs(
        self, batch: Sequence[PendingRequest], binding: tuple[int, ...]
    ) -> list[torch.Tensor]:
        contents = [pending.request.read_contents() for pending in batch]
        if len(batch) == 1:
            return list(map(make_tensor, batch[0].request.plan.inputs, contents[0]))
        shapes, _ = self._shapes_of(binding)
        return [
            make_batch(
                [pending.request.plan.inputs[index] for pending in batch],
                [given[index] for given in contents],
                axis,
                shapes[index],
                self._values[index],
            )
            for index, axis in enumerate(self._input_axes)
        ]

    def binding(self, pending: PendingRequest, rows: int) -> tuple[int, ...]:
        """Returns the values of the contract's symbols for a batch of `rows` like this request."""
        binding = list(pending.request.plan.binding)
        binding[self._batch_symbol] = rows
        return tuple(binding)

    def _shapes(
        self, binding: tuple[int, ...]
    ) -> tuple[list[tuple[int, ...]], list[tuple[int | None, ...]]]:
        """Returns the shapes of the inputs, and those of the outputs as far as they are known."""
        inputs = [
            tuple(size.evaluate(binding) for size in spec.shape)
            for spec in self.contract.tensor_inputs.values()
        ]
        return inputs, list(self.contract.output_shapes(binding).values())

    def _check(self, outputs: Sequence[torch.Tensor], binding: tuple[int, ...]) -> None:
        """Raises InternalError if the outputs are not what the contract promises."""
        _, promised = self._shapes_of(binding)
        if len(outputs) != len(promised):
            raise InternalError(
                f"{self.subject} gave {counted(len(outputs), 'output')} instead of {len(promised)}"
            )
        for output, shape, dtype in zip(outputs, promised, self._dtypes, strict=True):
            if output.dtype is not dtype:
                raise InternalError(
                    f"{self.subject} gave an output of {output.dtype} where its contract promises "
                    f"{dtype}"
                )
            if tuple(output.shape) != shape and not (
                output.dim() == len(shape)
                and all(
                    size in (None, real) for size, real in zip(shape, output.shape, strict=True)
                )
            ):
                raise InternalError(
                    f"{self.subject} gave an output of shape {list(output.shape)} where its "
                    f"contract promises {list(shape)}"
                )

    def _cut(
        self, output: torch.Tensor, index: int, batch: Sequence[PendingRequest]
    ) -> Iterator[_Part]:
        """Yields each request's part of an output that may be larger than its own would be."""
        axis, start = self._output_axes[index], 0
        for pending in batch:
            part = output.narrow(axis, start, pending.rows)
            start += pending.rows
            _, promised = self._shapes_of(pending.request.plan.binding)
            for dimension, size in enumerate(promised[index]):
                if size is not None:
                    part = part.narrow(dimension, 0, size)
            yield tuple(part.shape), tensor_contents(part)


def _described(parts: Iterable[torch.Tensor]) -> Iterator[_Part]:
    for part in parts:
        yield tuple(part.shape), tensor_contents(part)


def _slices(output: torch.Tensor, rows: Sequence[int]) -> Iterator[_Part]:
    """Yields runs of rows of an output, without copying them."""
    whole = tensor_contents(output)
    row_shape = tuple(output.shape[1:])
    row_size = whole.nbytes // output.shape[0]
    start = 0
    for count in rows:
        yield (count, *row_shape), whole[start : start + count * row_size]
        start += count * row_size
