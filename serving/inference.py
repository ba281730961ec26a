"""Requests to models, from their bytes to whoever runs them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from slipway.serving.errors import InternalError, ServingError, UnavailableError
from slipway.serving.plan import InferenceRequest
from slipway.serving.repository import Repository
from slipway.serving.request_queue import PendingRequest, Reply
from slipway.serving.request_reader import RequestReader
from slipway.serving.scheduler import ClosedError, Scheduler
from slipway.serving.shared_memory import SharedMemoryRegions
from slipway.serving.transport import WireCall

__all__ = ["InferenceFrontend"]

_LOGGER = logging.getLogger(__name__)

_LARGE = 2**20
"""Bytes of a message from which on reading it is not left to the thread that receives."""

_LONGEST_SLEEP = 0.25
"""Seconds after which to look for requests that have expired: other threads queue some too."""

_READ_AGAIN = 1.0
"""A moment in the past, in seconds since 1970."""


class InferenceFrontend:
    """Takes requests, and hands those that satisfy their model's contract to its scheduler.

    Attributes:
      is_open: whether models are loaded; requests that come before are answered UNAVAILABLE.
    """

    def __init__(
        self, repository: Repository, shared_memory: SharedMemoryRegions | None = None
    ) -> None:
        """Makes a front end that is not open yet.

        Args:
          repository: of the models.
          shared_memory: the regions that tensors may lie in; None for none at all.
        """
        self.is_open = False
        self._repository = repository
        self._shared_memory = shared_memory
        self._local = threading.local()
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large requests")
        # What has requests that the receiving thread has not seen to yet.
        self._awaiting: set[Scheduler] = set()
        self._generation = -1
        self._schedulers: list[Scheduler] = []

    def on_request(self, call: WireCall, message: bytes) -> None:
        """Takes a call of ModelInfer, in the thread that receives.

        Raises:
          ServingError: the request gets no result.
        """
        if len(message) > _LARGE:
            self._large.submit(self._take_large, call, message)
            return
        self._awaiting.add(self._take_call(call, message))

    def on_idle(self, all_received: bool) -> float:
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
        return partial(scheduler.cancel, pending)

    def close(self) -> None:
        """Ends the threads; no request may be under way."""
        self._large.shutdown()

    def _take_call(self, call: WireCall, message: bytes) -> Scheduler:
        scheduler, pending = self._take(message, call, call.deadline)
        call.on_cancel = partial(scheduler.cancel, pending)
        if call.cancelled:  # before there was anyone to tell
            scheduler.cancel(pending)
        return scheduler

    def _take(
        self, message: bytes, reply: Reply, deadline: float
    ) -> tuple[Scheduler, PendingRequest]:
        if not self.is_open:
            raise UnavailableError("the server is loading its models: try again")
        arrived = time.monotonic()
        reader = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = RequestReader(self._repository, self._shared_memory)
        while True:
            generation = self._repository.generation
            request: InferenceRequest = reader.read(message)
            plan = request.plan
            expires = min(deadline, arrived + (plan.timeout or math.inf))
            pending = PendingRequest(request, reply, arrived, expires)
            scheduler = plan.model.scheduler
            try:
                scheduler.submit(pending)
            except ClosedError:
                if self._repository.generation == generation:
                    raise
                continue  # another version has taken its place in between
            except ServingError:
                plan.model.statistics.failed(time.monotonic() - arrived)
                raise
            return scheduler, pending

    def _take_large(self, call: WireCall, message: bytes) -> None:
        try:
            _run(self._take_call(call, message))
        except ServingError as error:
            _LOGGER.info("ModelInfer: %s: %s", error.status.name, error)
            call.fail(error)
        except Exception:
            _LOGGER.exception("ModelInfer failed")
            call.fail(InternalError("ModelInfer failed; the server's log has the cause"))


def _run(scheduler: Scheduler) -> None:
    while scheduler.run_pending():
        pass
