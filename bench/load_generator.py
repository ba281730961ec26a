"""Load on a server, and how it stands it: closed loops and open ones, in one thread.

A closed loop is N callers, each of which sends its next request when it has the answer to the last:
it finds how much a server can do. An open loop sends at a rate, whether or not the server keeps up,
and counts time from the moment at which each request was due: it finds what users would see.

Every answer is looked at. One that is wrong is never counted as served.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from slipway.bench.http2_client import (
    DEADLINE_EXCEEDED,
    NO_ANSWER,
    OK,
    GrpcConnection,
    Reply,
)
from slipway.bench.polling import Connection, Poll, ahead_of_others, without_collection

__all__ = [
    "Caller",
    "ClosedLoad",
    "OpenLoad",
    "Request",
    "Target",
    "closed_loop",
    "open_loop",
    "percentile",
]

_RESOURCE_EXHAUSTED = 8

_MOST_SENT = 64
"""Requests that an open loop sends before it looks for answers."""


@dataclass(frozen=True)
class Request:
    """What to send, as the connection takes it, and which reply is the right one."""

    message: bytes
    accepts: Callable[[Reply], bool]


@dataclass(frozen=True)
class Target:
    """A method of a server.

    Attributes:
      address: HOST:PORT.
      path: of the method.
      connect: makes a connection of them.
    """

    address: str
    path: str
    connect: Callable[[str, str], Connection] = GrpcConnection

    def connection(self) -> Connection:
        """Returns a new connection."""
        return self.connect(self.address, self.path)


@dataclass
class Caller:
    """One connection of a closed loop, which sends `requests` again and again.

    Attributes:
      latencies: seconds of each answer that was right, in the time that counts.
      wrong: how often each other reply came, by what it said.
    """

    target: Target
    requests: Sequence[Request]
    latencies: list[float] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)
    _next: int = 0
    _sent: float = 0.0

    def send(self, connection: Connection) -> None:
        """Sends the next request."""
        request = self.requests[self._next % len(self.requests)]
        self._next += 1
        self._sent = time.perf_counter()
        connection.send(request, request.message)

    def take(self, reply: Reply, now: float, counts: bool) -> None:
        """Takes the reply to the request that was sent last."""
        request = reply.token
        assert isinstance(request, Request)
        if not request.accepts(reply):
            self.wrong[_description(reply)] += 1
        elif counts:
            self.latencies.append(now - self._sent)


@dataclass(frozen=True)
class ClosedLoad:
    """What a closed loop found.

    Attributes:
      rate: right answers a second.
      latencies: seconds, sorted.
      wrong: how often each other reply came, by what it said.
      generator_share: of one core, what this side of the load took.
    """

    rate: float
    latencies: Sequence[float]
    wrong: Counter[str]
    generator_share: float


def closed_loop(callers: Sequence[Caller], seconds: float, warm_up: float = 0.3) -> ClosedLoad:
    """Runs callers side by side.

    Args:
      callers: each on a connection of its own; their results are added to.
      seconds: that count.
      warm_up: seconds before, that do not; what is wrong counts in them too.

    Raises:
      ConnectionLost: the server closed a connection.
    """
    connections = {id(caller): caller.target.connection() for caller in callers}
    by_number = {connections[id(caller)].fileno(): caller for caller in callers}
    with Poll(list(connections.values())) as poll, without_collection():
        for caller in callers:
            caller.send(connections[id(caller)])
            poll.watch(connections[id(caller)])
        start = now = time.perf_counter()
        measured_from, until = start + warm_up, start + warm_up + seconds
        before = time.thread_time()
        counting = warm_up == 0
        while now < until:
            for connection, replies in poll.wait((until if counting else measured_from) - now):
                caller = by_number[connection.fileno()]
                now = time.perf_counter()
                for reply in replies:
                    caller.take(reply, now, counting)
                    caller.send(connection)
                poll.watch(connection)
            now = time.perf_counter()
            if not counting and now >= measured_from:
                counting, measured_from, before = True, now, time.thread_time()
        elapsed, busy = now - measured_from, time.thread_time() - before
    latencies = sorted(latency for caller in callers for latency in caller.latencies)
    wrong = sum((caller.wrong for caller in callers), Counter[str]())
    return ClosedLoad(len(latencies) / elapsed, latencies, wrong, busy / elapsed)


@dataclass
class OpenLoad:
    """What an open loop found.

    Attributes:
      seconds: for which requests were sent.
      sent: how many were.
      good: seconds from when each was due to its answer, right and before the deadline.
      late: the same, of right answers after it.
      refused: seconds from when it was sent to each RESOURCE_EXHAUSTED.
      expired: how many were given up for their deadline, by the server or before they were sent.
      lost: how many had no answer when the deadline was long over.
      failed: how often each other status came, by what it said.
      wrong: how often an answer came that is not right, by what it was.
      lags: seconds from when each was due to when it was sent.
    """

    seconds: float
    sent: int = 0
    good: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    expired: int = 0
    lost: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    lags: list[float] = field(default_factory=list)
    generator_share: float = 0.0

    @property
    def goodput(self) -> float:
        """Returns good answers a second."""
        return len(self.good) / self.seconds


@dataclass(slots=True)
class _Sent:
    request: Request
    due: float
    at: float


def open_loop(
    target: Target,
    requests: Sequence[Request],
    *,
    rate: float,
    seconds: float,
    connections: int = 32,
    deadline: float | None = None,
    patience: float = 5.0,
) -> OpenLoad:
    """Sends requests at random moments, on average `rate` a second.

    It goes before others where the system allows that, as if it had a machine of its own.

    Args:
      target: what they are sent to.
      requests: are sent in turn.
      rate: a second.
      seconds: for how long to send.
      connections: that share the requests.
      deadline: seconds that the server is told to answer within.
      patience: seconds beyond the deadline after which a request counts as lost. They begin when
        the last one has been sent, which may be late.

    Raises:
      ConnectionLost: the server closed a connection.
    """
    found = OpenLoad(seconds)
    moments = random.Random(0)
    opened = [target.connection() for _ in range(connections)]
    under_way: set[int] = set()
    with Poll(opened) as poll, without_collection(), ahead_of_others():
        due = start = time.perf_counter()
        before = time.thread_time()
        end = start + seconds
        give_up = now = start
        while due < end or (under_way and now < give_up):
            # Answers are taken even when there is more to send than there is time for.
            for _ in range(_MOST_SENT):
                if due > now or due >= end:
                    break
                sent = _Sent(requests[found.sent % len(requests)], due, now)
                connection = opened[found.sent % connections]
                found.sent += 1
                under_way.add(id(sent))
                connection.send(sent, sent.request.message, deadline)
                poll.watch(connection)
                found.lags.append(now - due)
                due += moments.expovariate(rate)
                now = time.perf_counter()
                give_up = now + (deadline or 0) + patience
            for connection, replies in poll.wait((due if due < end else give_up) - now):
                now = time.perf_counter()
                for reply in replies:
                    _count(found, reply, now, deadline)
                    under_way.discard(id(reply.token))
                poll.watch(connection)
            now = time.perf_counter()
        found.generator_share = (time.thread_time() - before) / (time.perf_counter() - start)
    found.lost = len(under_way)
    return found


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the value below which `percent` of `values`, which are sorted, lie; nan of none."""
    if not values:
        return float("nan")
    return values[min(len(values) - 1, int(len(values) * percent / 100))]


def _count(found: OpenLoad, reply: Reply, now: float, deadline: float | None) -> None:
    sent = reply.token
    assert isinstance(sent, _Sent)
    latency = now - sent.due
    over = deadline is not None and latency >= deadline
    if reply.status == _RESOURCE_EXHAUSTED:
        found.refused.append(now - sent.at)
    elif reply.status == DEADLINE_EXCEEDED or (reply.status == NO_ANSWER and over):
        # gRPC resets the stream of a call whose deadline has passed.
        found.expired += 1
    elif reply.status != OK:
        found.failed[_description(reply)] += 1
    elif not sent.request.accepts(reply):
        found.wrong[_description(reply)] += 1
    else:
        (found.late if over else found.good).append(latency)


def _description(reply: Reply) -> str:
    if reply.status == OK:
        return f"a wrong answer of {len(reply.message)} bytes"
    return f"status {reply.status}: {reply.message[:200].decode(errors='replace')}"
