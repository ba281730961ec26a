"""When requests run: admission, batches, and the threads that run them.

A batch is made when an instance is free, of the requests that wait at that moment, so a batch grows
for as long as the instances are busy, and nothing waits while one is idle. What batches were
measured to take says how far requests are padded, and whether instances that are free together
divide what waits. The thread that receives requests runs a batch itself if that takes less than to
wake another thread, or while requests come one at a time; else it goes on receiving. Whoever ends a
batch takes in what has arrived meanwhile, unless there is enough for the next one.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slipway.program.words import counted
from slipway.serving.arrivals import Arrivals
from slipway.serving.batch_executor import BatchExecutor
from slipway.serving.cost import BatchCost
from slipway.serving.errors import (
    DeviceError,
    OverloadedError,
    ResourceExhaustedError,
    UnavailableError,
)
from slipway.serving.memory_budget import MemoryBudget
from slipway.serving.request_queue import PendingRequest, RequestQueue
from slipway.serving.statistics import StageTimes
from slipway.serving.thread_priority import give_way

__all__ = ["ClosedError", "Scheduler", "SchedulingOptions"]

_LOGGER = logging.getLogger(__name__)

_INLINE_SECONDS = 2e-3
"""A batch that takes more of a processor is never run by the receiving thread."""

_INLINE_BUDGET_SECONDS = 5e-3
"""How long the receiving thread runs batches before it looks at what has arrived."""

_TINY_SECONDS = 5e-4
"""A batch that takes less of a processor is run by the receiving thread even if others come at the
same time."""

_CALM_AFTER = 4
"""Requests that must have come one at a time for the receiving thread to run longer batches."""

_INLINE_AFTER = 8
"""Batches that must have been measured before."""

_RESERVE = 1.1
"""How much longer than expected it may take until a request that has a deadline is answered."""

_RAISE_AFTER = 100
"""Batches as large as memory allowed before a larger one is tried again."""

_SMOOTHING = 0.1
"""The share of the newest measurement in a running mean."""


@dataclass(frozen=True, slots=True)
class SchedulingOptions:
    """How the requests of each model are run.

    Attributes:
      instances: how many batches run at the same time.
      max_batch_size: rows of a batch that requests share, at most; the contract may allow less.
      batch_delay: how long a request may wait for others when an instance becomes free, in seconds.
      max_queue_requests: how many requests wait, at most.
      max_queue_bytes: how much they hold, at most, in bytes.
    """

    instances: int = 1
    max_batch_size: int = 64
    batch_delay: float = 0.0
    max_queue_requests: int = 1024
    max_queue_bytes: int = 2**30


class ClosedError(UnavailableError):
    """The version is being unloaded; another may have taken its place."""


class Scheduler:
    """Runs the requests of one version of a model."""

    def __init__(
        self,
        executor: BatchExecutor,
        options: SchedulingOptions,
        memory: MemoryBudget,
        on_device_failure: Callable[[], None],
        arrivals: Arrivals,
    ) -> None:
        """Starts the threads, which `close` ends.

        Args:
          executor: runs the batches.
          options: how the requests are run.
          memory: shared with other models.
          on_device_failure: called when a device fails for good.
          arrivals: shared with other models, and with the thread that receives.
        """
        self._executor = executor
        self._options = options
        self._memory = memory
        self._on_device_failure = on_device_failure
        self._arrivals = arrivals
        self._condition = threading.Condition()
        self._queue = RequestQueue()
        self._running = self._idle = self._calm = 0
        # What the receiving thread took and left to the others; it counts as running.
        self._handed: deque[list[PendingRequest]] = deque()
        self._is_closed = self._is_released = False
        self._next_expiry = math.inf
        self._measured = 0
        # Of the largest batch that was quick, in bytes.
        self._quick_size = 0
        self._processor_seconds = self._row_seconds = 0.0
        self._cost = BatchCost()
        # Without what they wait for: batches that were handed over wait for Python's lock, and are
        # not to seem long for that, and be handed over for ever.
        self._processor_cost = BatchCost()
        self._most_rows = self._max_rows = min(options.max_batch_size, executor.max_rows)
        # Batches of `_max_rows` that ran since there was no memory for more.
        self._full = 0
        self._threads = [
            threading.Thread(target=self._serve, name=f"instance {index}", daemon=True)
            for index in range(options.instances)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> tuple[int, int]:
        """Returns how many requests wait, and the bytes that they hold."""
        return self._queue.count, self._queue.size

    @property
    def instances(self) -> int:
        """Returns how many batches run at the same time."""
        return self._options.instances

    @property
    def running(self) -> int:
        """Returns how many batches are being run."""
        return self._running

    @property
    def is_inline(self) -> bool:
        """Returns whether `run_pending` runs batches itself."""
        return (
            self._measured >= _INLINE_AFTER
            and self._processor_seconds < _INLINE_SECONDS
            and not self._options.batch_delay
        )

    def submit(self, pending: PendingRequest) -> None:
        """Takes a request on: it will be answered.

        Where there is no room for it, it takes the place of less urgent ones, which are refused.

        The caller calls `run_pending` soon after; that of one thread, for all it has submitted.

        Raises:
          OverloadedError: it cannot be run in time, or there is no room for it.
          DeadlineError: its time was over when it came.
          ClosedError: the scheduler is closed.
        """
        size = pending.request.size
        options = self._options
        displaced: Sequence[PendingRequest] = ()
        with self._condition:
            queue = self._queue
            if self._is_closed:
                raise ClosedError(f"{self._executor.subject} is being unloaded: try again")
            if queue.count >= options.max_queue_requests or (
                queue.count and queue.size + size > options.max_queue_bytes
            ):
                displaced = self._displaced_by(pending)
            if pending.expires < math.inf:
                if pending.expires <= pending.arrived:
                    raise self._executor.deadline_error(pending)
                rows = queue.rows_before(pending.request.plan.priority)
                wait = self._seconds_until_run(rows)
                # As if it were like all others: those that take long are not to be refused
                # for ever because others still fit in.
                own = pending.rows * self._row_seconds
                answered = pending.arrived + _RESERVE * (wait + own)
                if rows and answered > pending.expires:
                    raise OverloadedError(
                        f"{self._executor.subject} would not answer this request before its "
                        f"deadline: what waits before it takes {wait:.3g} seconds, and it takes "
                        f"{own:.3g} itself",
                        retry_after=wait,
                        time_left=pending.expires - pending.arrived,
                    )
                self._next_expiry = min(self._next_expiry, pending.expires)
            self._memory.take(size, freed=_size(displaced))
            for other in displaced:
                queue.remove(other)
            queue.put(pending)
        if displaced:
            self._refuse(displaced)

    def run_pending(self) -> bool:
        """Runs batches where that is quick, or wakes a thread that does.

        Returns whether requests still wait that this thread should run: it shall call again.
        """
        until = time.monotonic() + _INLINE_BUDGET_SECONDS
        while True:
            with self._condition:
                if not self._may_start():
                    return False  # those that run will go on with what waits
                if not self.is_inline:
                    self._condition.notify()
                    return False
                is_calm = not self._running and self._queue.count == 1
                self._calm = self._calm + 1 if is_calm else 0
                batch = self._take()
                if _size(batch) > 2 * self._quick_size or (
                    self._calm < _CALM_AFTER
                    and self._processor_cost.seconds(_padded_size(batch)) > _TINY_SECONDS
                ):
                    # How long it takes is not known, or there is more to receive meanwhile.
                    self._handed.append(batch)
                    self._condition.notify()
                    return False
            self._run(batch, is_quick=True)
            if time.monotonic() > until:
                return bool(self._queue.count)

    def wake(self) -> None:
        """Has an instance that is idle run what waits, if there is one.

        That does instead of `run_pending` in a thread that has something else to do.
        """
        with self._condition:
            if self._may_start():
                self._condition.notify()

    def cancel(self, pending: PendingRequest) -> None:
        """Forgets a request whose client has gone, unless it is being run."""
        with self._condition:
            if not self._queue.remove(pending):
                return
        self._forget(pending)

    def expire(self) -> float:
        """Answers requests whose time is over; returns when to call again, by the same clock."""
        now = time.monotonic()
        if now >= self._next_expiry:
            with self._condition:
                expired = self._queue.expired(now)
                expiries = (pending.expires for pending in self._queue)
                self._next_expiry = min(expiries, default=math.inf)
            for pending in expired:
                self._expire(pending)
        return self._next_expiry

    def close(self) -> None:
        """Refuses new requests, waits until all others are answered, and ends the threads."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        with self._condition:
            # The receiving thread may be running the last batch.
            while self._running:
                self._condition.wait()
            if not self._is_released:
                self._is_released = True
                self._executor.release()

    def _serve(self) -> None:
        give_way()
        while (batch := self._next_batch()) is not None:
            self._run(batch)
            del batch  # which may be large, while waiting for the next
            if self._queue.rows < self._max_rows:
                self._arrivals.take_in()
            if self._options.batch_delay:
                self._await_more()

    def _next_batch(self) -> list[PendingRequest] | None:
        """Waits for a batch to run; returns None once there will be no more."""
        with self._condition:
            while not self._handed and not self._may_start():
                if self._is_closed and not self._queue.count:
                    return None
                self._idle += 1
                self._arrivals.await_more()
                self._condition.wait()
                self._idle -= 1
            batch = self._handed.popleft() if self._handed else self._take()
            if self._may_start():
                self._condition.notify()  # for what this batch left
            return batch

    def _await_more(self) -> None:
        """Waits, after a batch, until the next is complete or a request waited long enough."""
        with self._condition:
            while self._queue.count and not self._is_closed and not self._idle:
                remaining = min(map(self._latest_start, self._queue)) - time.monotonic()
                if remaining <= 0 or self._queue.is_next_complete(
                    self._max_rows, self._is_legal, self._cost.worth
                ):
                    return
                self._condition.wait(remaining)

    def _latest_start(self, pending: PendingRequest) -> float:
        """Returns until when a request may wait for others; it is to be answered in time."""
        delay = self._options.batch_delay
        return pending.arrived + min(delay, (pending.expires - pending.arrived) / 2)

    def _displaced_by(self, pending: PendingRequest) -> list[PendingRequest]:
        """Returns the less urgent requests that have to go for one that there is no room for.

        Raises:
          OverloadedError: there are not enough of them.
        """
        queue, options = self._queue, self._options
        count, size = queue.count, queue.size
        displaced = []
        for other in queue.less_urgent(pending.request.plan.priority):
            displaced.append(other)
            count -= 1
            size -= other.request.size
            if count < options.max_queue_requests and (
                not count or size + pending.request.size <= options.max_queue_bytes
            ):
                return displaced
        raise OverloadedError(
            f"{self._executor.subject} has {counted(queue.count, 'request')} waiting, {queue.size} "
            f"bytes in all; max_queue_requests is {options.max_queue_requests}, and "
            f"max_queue_bytes {options.max_queue_bytes}: try again later",
            retry_after=self._seconds_until_run(queue.rows),
        )

    def _refuse(self, displaced: Sequence[PendingRequest]) -> None:
        """Answers requests that more urgent ones have taken the place and the memory of."""
        error = OverloadedError(
            f"{self._executor.subject} has no room for this request any more, as more urgent ones "
            f"have come; max_queue_requests is {self._options.max_queue_requests}, and "
            f"max_queue_bytes {self._options.max_queue_bytes}: try again later",
            retry_after=self._seconds_until_run(self._queue.rows),
        )
        for pending in displaced:
            self._executor.fail(pending, error)

    def _may_start(self) -> bool:
        """Returns whether requests wait and an instance is free.

        The receiving thread takes the place of an instance while it runs a batch itself.
        """
        return self._queue.count > 0 and self._running < self._options.instances

    def _take(self) -> list[PendingRequest]:
        queue, max_rows = self._queue, self._max_rows
        free = self._options.instances - self._running
        if free > 1:
            # Those that are free are to have something as well, if there is enough of it.
            share = math.ceil(queue.rows / free)
            if self._cost.pays_alone(queue.size / free):
                max_rows = min(max_rows, share)
        batch = queue.take(max_rows, self._is_legal, self._cost.worth)
        self._running += 1
        self._arrivals.begin()
        return batch

    def _is_legal(self, pending: PendingRequest, rows: int) -> bool:
        return self._executor.contract.is_legal(self._executor.binding(pending, rows))

    def _run(self, batch: Sequence[PendingRequest], *, is_quick: bool = False) -> None:
        try:
            started = time.monotonic()
            needed = self._batch_seconds(batch)
            live = [pending for pending in batch if self._is_wanted(pending, started, needed)]
            if live:
                times = self._execute(live, is_quick)
                if times is not None:
                    self._measure(time.monotonic() - started, times, live)
        finally:
            for pending in batch:
                self._memory.give_back(pending.request.size)
            self._arrivals.end()
            with self._condition:
                self._running -= 1
                if self._is_closed:
                    self._condition.notify_all()

    def _execute(self, batch: Sequence[PendingRequest], is_quick: bool) -> StageTimes | None:
        try:
            return self._executor.execute(batch, is_quick=is_quick)
        except ResourceExhaustedError as error:
            rows = sum(pending.rows for pending in batch)
            self._max_rows = max(1, min(self._max_rows, rows // 2))  # requests may have no rows
            self._full = 0
            _LOGGER.warning(
                "%s: batches are limited to %d rows for a while: %s",
                self._executor.subject,
                self._max_rows,
                error,
            )
        except DeviceError:
            self._on_device_failure()
        except Exception:
            # The thread must go on: others wait for it.
            _LOGGER.exception("%s: a batch could not be answered", self._executor.subject)
        return None

    def _is_wanted(self, pending: PendingRequest, now: float, seconds: float) -> bool:
        """Returns whether to run a request, which is answered if not.

        Args:
          pending: from the batch that is about to run.
          now: by the monotonic clock.
          seconds: how long the batch will take.
        """
        # One that waited is not run to be answered too late. One that did not is: there is nothing
        # else to do, and batches of another kind may take less.
        waited = now - pending.arrived > seconds
        return not self._executor.drop(pending, now + seconds if waited else now)

    def _expire(self, pending: PendingRequest) -> None:
        self._memory.give_back(pending.request.size)
        self._executor.fail(pending, self._executor.deadline_error(pending))

    def _forget(self, pending: PendingRequest) -> None:
        self._memory.give_back(pending.request.size)
        self._executor.forget(pending)

    def _measure(
        self,
        seconds: float,
        times: StageTimes,
        batch: Sequence[PendingRequest],
    ) -> None:
        size = _size(batch)
        rows = sum(pending.rows for pending in batch)
        with self._condition:
            if times.processor < _INLINE_SECONDS:
                self._quick_size = max(self._quick_size, size)
            else:
                # So that one of this size is more than twice as large.
                self._quick_size = min(self._quick_size, (size - 1) // 2)
            if rows >= self._max_rows < self._most_rows:
                self._full += 1
                if self._full >= _RAISE_AFTER:
                    # What took the memory may be gone.
                    self._max_rows = min(self._most_rows, self._max_rows + 1 + self._max_rows // 4)
                    self._full = 0
            self._cost.add(_padded_size(batch), times.input + times.compute)
            self._processor_cost.add(_padded_size(batch), times.processor)
            self._measured += 1
            if self._measured == 1:
                return  # it made memory and threads ready, and says nothing of the next ones
            share = max(_SMOOTHING, 1 / (self._measured - 1))
            self._processor_seconds += share * (times.processor - self._processor_seconds)
            self._row_seconds += share * (seconds / max(rows, 1) - self._row_seconds)

    def _batch_seconds(self, batch: Sequence[PendingRequest]) -> float:
        """Returns how long a batch will take."""
        if self._cost.is_known:
            return self._cost.seconds(_padded_size(batch))
        return sum(pending.rows for pending in batch) * self._row_seconds

    def _seconds_until_run(self, rows: int) -> float:
        """Returns how long so many rows will take that wait."""
        return rows * self._row_seconds / self._options.instances


def _size(batch: Sequence[PendingRequest]) -> int:
    """Returns how many bytes the requests hold."""
    return sum(pending.request.size for pending in batch)


def _padded_size(batch: Sequence[PendingRequest]) -> int:
    """Returns how many bytes the inputs of a batch have."""
    return sum(pending.rows for pending in batch) * max(pending.row_size for pending in batch)
