"""The requests that wait for one model, and the batches that are made of them."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from slipway.serving.errors import ServingError
from slipway.serving.observation import Metadata, RequestRecord, request_id
from slipway.serving.plan import InferenceRequest

__all__ = ["PendingRequest", "Reply", "RequestQueue", "log_context"]

_LOOK_AHEAD = 256
"""How many requests may be looked at for one batch."""

_PADDING_SHARE = 0.25
"""Of a padded request that may be padding, while it is not known what that costs."""


class Reply(Protocol):
    """Where the answer to a request goes. Exactly one of the methods is called, once."""

    @property
    def cancelled(self) -> bool:
        """Returns whether the client has gone; then there is nobody to answer."""

    @property
    def metadata(self) -> Metadata:
        """Returns what the client sent beside the message."""

    @property
    def method(self) -> str:
        """Returns the protocol's method that it came by."""

    def respond(self, message: bytes) -> None:
        """Answers with a serialised ModelInferResponse."""

    def fail(self, error: ServingError) -> None:
        """Answers with a status."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class PendingRequest:
    """A request that has been admitted and not been answered.

    Attributes:
      request: what was asked.
      reply: where the answer goes.
      arrived: when it came, by the monotonic clock, in seconds.
      expires: when it is of no use any more, by the same clock; infinite if never.
      record: what is noted of it, if it is observed.
    """

    request: InferenceRequest
    reply: Reply
    arrived: float
    expires: float = math.inf
    record: RequestRecord | None = None

    @property
    def rows(self) -> int:
        """Returns the size of its batch dimension."""
        return self.request.plan.rows

    @property
    def row_size(self) -> int:
        """Returns how many bytes one row of its inputs has."""
        return self.request.plan.row_size


_Group = OrderedDict[PendingRequest, None]
"""Requests that can share a batch, by arrival. Any of them can be taken out at once."""


class RequestQueue:
    """Requests by urgency, and among equals by arrival. Whoever shares one guards it with a lock.

    Attributes:
      count: of the requests in it.
      rows: of all of them.
      size: bytes that they hold.
    """

    def __init__(self) -> None:
        self.count = self.rows = self.size = 0
        self._rows_of_priority: dict[int, int] = {}
        # By priority and by what requests must agree in to share a batch.
        self._groups: dict[tuple[int, tuple[int, ...] | None], _Group] = {}

    def put(self, pending: PendingRequest) -> None:
        self._groups.setdefault(_key(pending), OrderedDict())[pending] = None
        self._count(pending, 1)

    def remove(self, pending: PendingRequest) -> bool:
        """Takes a request out before its turn, and returns whether it was still there."""
        key = _key(pending)
        group = self._groups.get(key)
        if group is None or pending not in group:
            return False
        del group[pending]
        if not group:
            del self._groups[key]
        self._count(pending, -1)
        return True

    def is_next_complete(
        self,
        max_rows: int,
        is_legal: Callable[[PendingRequest, int], bool],
        worth: float | None = None,
    ) -> bool:
        """Returns whether nobody who comes could be in the batch that `take` would take."""
        batch = self._batch(max_rows, is_legal, worth)
        if not batch or batch[0].request.plan.group is None:
            return True
        rows = sum(pending.rows for pending in batch)
        following = list(itertools.islice(self._groups[_key(batch[0])], len(batch) + 1))
        # Whoever is next in line, and needs no padding, goes before those that come.
        return rows >= max_rows or (
            len(following) > len(batch)
            and all(pending.row_size == batch[0].row_size for pending in following)
        )

    def take(
        self,
        max_rows: int,
        is_legal: Callable[[PendingRequest, int], bool],
        worth: float | None = None,
    ) -> list[PendingRequest]:
        """Takes the most urgent request, with those that can run in one batch with it.

        Args:
          max_rows: of a batch of more than one request.
          is_legal: whether the model takes a batch of so many rows of requests like this one.
          worth: how many bytes of padding are worth having one batch less; None to pad no request
            by more than a quarter.
        """
        batch = self._batch(max_rows, is_legal, worth)
        for pending in batch:
            self.remove(pending)
        return batch

    def rows_before(self, priority: int) -> int:
        """Returns how many rows are run before a request of this priority that comes now."""
        return sum(rows for other, rows in self._rows_of_priority.items() if other <= priority)

    def expired(self, now: float) -> list[PendingRequest]:
        """Takes and returns the requests that have expired by `now`."""
        found = [pending for pending in self if pending.expires <= now]
        for pending in found:
            self.remove(pending)
        return found

    def less_urgent(self, priority: int) -> Iterator[PendingRequest]:
        """Yields the requests that are less urgent than a priority, those to run last first."""
        groups = (group for key, group in self._groups.items() if key[0] > priority)
        return heapq.merge(
            *map(reversed, groups),
            key=lambda pending: (-pending.request.plan.priority, -pending.arrived),
        )

    def __iter__(self) -> Iterator[PendingRequest]:
        for group in self._groups.values():
            yield from group

    def _batch(
        self,
        max_rows: int,
        is_legal: Callable[[PendingRequest, int], bool],
        worth: float | None,
    ) -> list[PendingRequest]:
        group = self._first_group()
        if group is None:
            return []
        first = next(iter(group))
        if first.request.plan.group is None:
            return [first]
        others = list(itertools.islice(group, 1, _LOOK_AHEAD))
        equal = [pending for pending in others if pending.row_size == first.row_size]
        rows = first.rows + sum(pending.rows for pending in equal)
        if rows >= max_rows or len(equal) == len(others):
            others = equal
        else:
            others = _worth_padding(first, others, worth)
        batch = [first]
        rows = first.rows
        for pending in others:
            if rows + pending.rows > max_rows:
                break
            rows += pending.rows
            batch.append(pending)
        while len(batch) > 1 and not is_legal(first, rows):
            rows -= batch.pop().rows
        return batch

    def _first_group(self) -> _Group | None:
        best: _Group | None = None
        best_rank = (math.inf, math.inf)
        for key, group in self._groups.items():
            rank = (key[0], next(iter(group)).arrived)
            if rank < best_rank:
                best, best_rank = group, rank
        return best

    def _count(self, pending: PendingRequest, sign: int) -> None:
        self.count += sign
        self.rows += sign * pending.rows
        self.size += sign * pending.request.size
        priority = pending.request.plan.priority
        rows = self._rows_of_priority.get(priority, 0) + sign * pending.rows
        if rows:
            self._rows_of_priority[priority] = rows
        else:
            self._rows_of_priority.pop(priority, None)


def _key(pending: PendingRequest) -> tuple[int, tuple[int, ...] | None]:
    plan = pending.request.plan
    return plan.priority, plan.group


def _worth_padding(
    first: PendingRequest, others: Sequence[PendingRequest], worth: float | None
) -> list[PendingRequest]:
    """Returns the requests to run with the first, those that need the least padding before others.

    Args:
      first: who is in the batch anyway.
      others: in the order of their arrival, which stays among equals.
      worth: as in `RequestQueue.take`.
    """
    smaller = [pending for pending in others if pending.row_size <= first.row_size]
    larger = [pending for pending in others if pending.row_size > first.row_size]
    # The nearest last.
    smaller.sort(key=lambda pending: (pending.row_size, -pending.arrived))
    larger.sort(key=lambda pending: (-pending.row_size, -pending.arrived))
    chosen: list[PendingRequest] = []
    rows, longest = first.rows, first.row_size
    while smaller or larger:
        # A smaller one is padded itself, a larger one has all others padded.
        below = (longest - smaller[-1].row_size) * smaller[-1].rows if smaller else math.inf
        above = (larger[-1].row_size - longest) * rows if larger else math.inf
        source = smaller if below <= above else larger
        pending, padding = source[-1], min(below, above)
        bound = worth
        if bound is None:
            padded = longest * pending.rows if source is smaller else pending.row_size * rows
            bound = _PADDING_SHARE * padded
        if padding > bound:
            break
        source.pop()
        chosen.append(pending)
        rows += pending.rows
        longest = max(longest, pending.row_size)
    return chosen


def log_context(reply: Reply, identifier: bytes) -> dict[str, str]:
    """Returns what a line of the log says of the request that it is about, as its `extra`.

    Args:
      reply: where the request's answer goes.
      identifier: the request's id.
    """
    is_stream = reply.method != "ModelInfer"
    return {"request_id": request_id(reply.metadata, identifier, is_stream=is_stream)}
