"""Requests to models, from their bytes to whoever runs them."""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from slipway.serving.errors import (
    InternalError,
    OverloadedError,
    ServingError,
    UnavailableError,
)
from slipway.serving.observation import RequestObserver, RequestRecord
from slipway.serving.repository import Repository
from slipway.serving.request_queue import PendingRequest, Reply, log_context
from slipway.serving.request_reader import RequestReader
from slipway.serving.scheduler import ClosedError, Scheduler
from slipway.serving.shared_memory import SharedMemoryRegions
from slipway.serving.statistics import RefusalCounts
from slipway.serving.wire import MAX_MESSAGE_SIZE
from slipway.serving.wire_call import WireCall

__all__ = ["InferenceFrontend"]

_LOGGER = logging.getLogger(__name__)

_LARGE = 2**20
"""Bytes of a message from which on reading it is not left to the thread that receives."""

_LONGEST_SLEEP = 0.25
"""Seconds after which to look for requests that have expired: other threads queue some too."""

_UNREAD_RETRY_SECONDS = 0.1
"""When whoever sent a request that was not read may try again."""

_READ_AGAIN = 1.0
"""A moment in the past, in seconds since 1970."""


class InferenceFrontend:
    """Takes requests, and hands those that satisfy their model's contract to its scheduler.

    Attributes:
      is_open: whether models are loaded; requests that come before are answered UNAVAILABLE.
      refusals: the requests that got no result and are of no model that is served.
    """

    def __init__(
        self,
        repository: Repository,
        shared_memory: SharedMemoryRegions | None = None,
        observer: RequestObserver | None = None,
        max_message_bytes: int = MAX_MESSAGE_SIZE,
    ) -> None:
        """Makes a front end that is not open yet.

        Args:
          repository: of the models.
          shared_memory: the regions that tensors may lie in; None for none at all.
          observer: of single requests; None for none.
          max_message_bytes: of a response.
        """
        self.is_open = False
        self.refusals = RefusalCounts()
        self._observer = observer
        self._repository = repository
        self._shared_memory = shared_memory
        self._max_message_bytes = max_message_bytes
        self._local = threading.local()
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large requests")
        # What has requests that nobody has seen to yet.
        self._awaiting: set[Scheduler] = set()
        self._generation = -1
        self._schedulers: list[Scheduler] = []

    def on_request(self, call: WireCall, message: bytes) -> None:
        """Takes a call of ModelInfer, in one thread at a time: whichever receives it.

        Raises:
          ServingError: the request gets no result.
        """
        if len(message) > _LARGE:
            self._large.submit(self._take_large, call, message)
            return
        self._awaiting.add(self._take_call(call, message))

    def on_idle(self) -> float:
        """Runs what has been taken, in the thread that receives.

        Returns when it wants to be called again, in seconds since 1970.
        """
        for scheduler in list(self._awaiting):
            if not scheduler.run_pending():
                self._awaiting.discard(scheduler)
        if self._generation != self._repository.generation:
            self._generation = self._repository.generation
            self._schedulers = [model.scheduler for model in self._repository.models]
        upcoming = min((scheduler.expire() for scheduler in self._schedulers), default=math.inf)
        if self._awaiting:
            return _READ_AGAIN
        return time.time() + min(upcoming - time.monotonic(), _LONGEST_SLEEP)

    def on_received(self) -> None:
        """Has what has been taken run by others, in a thread that runs batches itself."""
        for scheduler in self._awaiting:
            scheduler.wake()
        self._awaiting.clear()

    def refuse_unread(self) -> OverloadedError:
        """Returns what to answer to a call that nobody has the time to read, and counts it."""
        error = OverloadedError(
            "more requests come than the server can look at, and this one was not read: try again "
            "later",
            retry_after=_UNREAD_RETRY_SECONDS,
        )
        self.refusals.add(error)
        return error

    def take(self, message: bytes, reply: Reply, deadline: float) -> Callable[[], None]:
        """Takes a request, in any thread but the one that receives.

        Returns what forgets it, unless it is being run, for when its client has gone.

        Args:
          message: a serialised ModelInferRequest.
          reply: where the answer goes.
          deadline: when the client gives up, by the monotonic clock; infinite if never.

        Raises:
          ServingError: the request gets no result.
        """
        scheduler, pending = self._take(message, reply, deadline)
        _run(scheduler)
        return partial(_cancel, scheduler, weakref.ref(pending))

    def close(self) -> None:
        """Ends the threads; no request may be under way."""
        self._large.shutdown()

    def _take_call(self, call: WireCall, message: bytes) -> Scheduler:
        scheduler, pending = self._take(message, call, call.deadline)
        call.on_cancel = partial(_cancel, scheduler, weakref.ref(pending))
        if call.cancelled:  # before there was anyone to tell
            scheduler.cancel(pending)
        return scheduler

    def _take(
        self, message: bytes, reply: Reply, deadline: float
    ) -> tuple[Scheduler, PendingRequest]:
        arrived = time.monotonic()
        reader: RequestReader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = RequestReader(
                self._repository, self._shared_memory, self._max_message_bytes
            )
        record = None
        if self._observer is not None:
            record = self._observer.begin(reply.method, reply.metadata, arrived)
        try:
            return self._admit(reader, message, reply, deadline, arrived, record)
        except ServingError as error:
            context = log_context(reply, reader.identifier)
            _LOGGER.info("%s: %s: %s", reply.method, error.status.name, error, extra=context)
            self._refused(reader, record, len(message), arrived, error)
            raise
        except Exception:
            failure = InternalError("the request could not be taken on")
            self._refused(reader, record, len(message), arrived, failure)
            raise

    def _refused(
        self,
        reader: RequestReader,
        record: RequestRecord | None,
        size: int,
        arrived: float,
        error: ServingError,
    ) -> None:
        """Counts a request that is not taken on."""
        model = reader.model
        if model is None:
            self.refusals.add(error)
        else:
            model.statistics.failed(time.monotonic() - arrived, error)
        if record is not None:
            record.identifier = reader.identifier.decode(errors="replace")
            record.model, record.size = model, size
            record.admitted = 0.0
            record.finish(error)

    def _admit(
        self,
        reader: RequestReader,
        message: bytes,
        reply: Reply,
        deadline: float,
        arrived: float,
        record: RequestRecord | None,
    ) -> tuple[Scheduler, PendingRequest]:
        if not self.is_open:
            raise UnavailableError("the server is loading its models: try again")
        while True:
            generation = self._repository.generation
            request = reader.read(message)
            plan = request.plan
            expires = min(deadline, arrived + (plan.timeout or math.inf))
            if record is not None:
                record.identifier, record.size = request.identifier.decode(), request.size
                record.model, record.rows = plan.model, plan.rows
                record.admitted = time.monotonic()
            pending = PendingRequest(request, reply, arrived, expires, record)
            scheduler = plan.model.scheduler
            try:
                scheduler.submit(pending)
            except ClosedError:
                if self._repository.generation == generation:
                    raise
                continue  # another version has taken its place in between
            return scheduler, pending

    def _take_large(self, call: WireCall, message: bytes) -> None:
        try:
            _run(self._take_call(call, message))
        except ServingError as error:
            call.fail(error)
        except Exception:
            _LOGGER.exception("ModelInfer failed")
            call.fail(InternalError("ModelInfer failed; the server's log has the cause"))


def _cancel(scheduler: Scheduler, reference: weakref.ref[PendingRequest]) -> None:
    """Forgets a request, which its reply must not hold: it holds the reply, and the message."""
    pending = reference()
    if pending is not None:
        scheduler.cancel(pending)


def _run(scheduler: Scheduler) -> None:
    while scheduler.run_pending():
        pass
