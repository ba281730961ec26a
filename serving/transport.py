"""Calls on the wire: who may call, and their messages, from one thread at a time that never waits.

grpcio's server gives each call a thread for as long as the call lasts, and wakes it twice. With one
interpreter lock among them, that costs more than small models do (`docs/benchmarks.md`); and a
client that takes its time to send a message, or to read an answer, keeps that thread from others.
Here grpcio's server still has the port, the connections, streams of requests and the shutdown, and
its completion queue, where all of these announce themselves, is polled by a loop of ours: what
belongs to methods that take one message is handled in the loop, the rest is passed on to grpcio.
Every call of every method passes here, and is refused here if its caller may not make it, before
its message is read.

The loop has a thread, which rests while every processor runs a batch: whoever ends one takes a turn
at the queue then. After `polling.read_while_polling`, whoever polls the queue also reads from the
connections; else threads of gRPC's own do.

The loop relies on the private parts of grpcio that its own server is built on. The lock pins the
version, and //tests/serving and //tests/protocol fail should another one differ.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from slipway.serving.arrivals import Arrivals
from slipway.serving.authorization import Authorizer
from slipway.serving.errors import InternalError, ServingError
from slipway.serving.memory_budget import MemoryBudget
from slipway.serving.thread_priority import run_at_once
from slipway.serving.wire_call import OnRequest, WireCall

__all__ = ["InferenceTransport"]

# Type checkers know nothing of these.
_server: Any = importlib.import_module("grpc._server")
cygrpc: Any = importlib.import_module("grpc._cython.cygrpc")

_LOGGER = logging.getLogger(__name__)

# grpcio writes a traceback for each value of metadata that is no UTF-8, and any client can send
# such values; they are taken as Latin-1.
logging.getLogger("grpc._cython.cygrpc").addFilter(
    lambda record: not str(record.msg).startswith("Invalid encoding")
)

_NOW = 1
"""A time long ago, in seconds since 1970: a poll until then does not wait."""

_MOST_EVENTS = 256
"""Events that are handled before what has arrived is run."""

_MOST_POLLS_WITHOUT_EVENT = 2
"""Polls in a row that find no event, before there is taken to be none. Each poll reads from one
connection, and what it reads may be a part of a message."""

_BEHIND_SECONDS = 0.005
"""How long there must have been something to receive all the time before calls are not read."""

_TAKE_IN_SECONDS = 2.0
"""How long the server's end waits, at most, until all that has arrived is taken in."""

_REFUSED_SECONDS = 1.0
"""How long a caller counts among those who ask for more than can be done."""

_MOST_REFUSED = 2**16
"""Callers that are remembered for that."""

_LONGEST = 2.0**32
"""Seconds until a deadline, beyond which it does not matter when it is."""


class _Caller:
    """Who made a call that has arrived."""

    __slots__ = ("_call", "metadata")

    def __init__(self, event: Any) -> None:
        self._call = event.call
        self.metadata = event.invocation_metadata

    def peer(self) -> str:
        return str(self._call.peer().decode(errors="replace"))

    def identities(self) -> list[str]:
        names = cygrpc.peer_identities(self._call) or ()
        return [name.decode(errors="replace") for name in names]


class InferenceTransport:
    """Runs a grpcio server, and takes the calls of those of its methods that take one message.

    Attributes:
      lock: guards the calls' states.
      memory: counts answers until they are read.
      incomplete: calls whose message has not come.
    """

    def __init__(
        self,
        server: grpc.Server,
        methods: Mapping[str, OnRequest],
        inference: str,
        on_idle: Callable[[], float],
        on_received: Callable[[], None],
        refuse_unread: Callable[[], ServingError],
        authorizer: Authorizer,
        arrivals: Arrivals,
        memory: MemoryBudget,
    ) -> None:
        """Makes a transport that is not started.

        Args:
          server: with handlers for every other method, its port added, and not started.
          methods: those that are taken, by their full names, `/SERVICE/METHOD`.
          inference: the one of them whose calls may be more than can be read.
          on_idle: called in the loop's thread, when all that has arrived was handed out, and after
            a while in which more kept arriving. It returns when it wants to be called again though
            nothing has arrived, in seconds since 1970.
          on_received: called in any other thread that has received calls, when all that had arrived
            was handed out.
          refuse_unread: counts a call whose message is not read, and returns what to answer.
          authorizer: says who may call, for every method of the server.
          arrivals: says when others receive calls.
          memory: see the attribute.
        """
        self.memory = memory
        self.lock = threading.Lock()
        # Held by whoever takes events from the queue.
        self._turn = threading.Lock()
        self._is_over = False
        self._has_taken_all = threading.Event()
        # Since when there has always been an event; None when there was none the last time.
        self._behind_since: float | None = None
        # When the latest request of a caller was refused because there were too many.
        self._refused: dict[tuple[bytes, int], float] = {}
        self.incomplete: set[WireCall] = set()
        self._methods = methods
        self._inference = inference
        self._on_idle = on_idle
        self._on_received = on_received
        self._refuse_unread = refuse_unread
        self._authorizer = authorizer
        # grpcio has no public way to its queue.
        self._server = server
        self._state: Any = server._state  # type: ignore[attr-defined]
        self._arrivals = arrivals
        arrivals.connect(self._receive_meanwhile)

    def note_refusal(self, peer: bytes, left: float) -> None:
        """Notes that a request was refused for there are too many; may be called from any thread.

        Args:
          peer: whose it was.
          left: seconds that it had. Those of a parameter `timeout` cannot be told without reading,
            so that they say nothing of other calls.
        """
        self._arrivals.note_refusal()
        if len(self._refused) >= _MOST_REFUSED:
            self._refused.clear()
        self._refused[peer, _urgency(left)] = time.monotonic()

    def refuse_incomplete(self, error: ServingError) -> None:
        """Answers calls whose message has not come yet. May be called from any thread."""
        with contextlib.suppress(KeyError):
            while True:
                self.incomplete.pop().fail(error)

    def start(self) -> None:
        """Starts the server, with the loop in a thread of its own."""
        with self._state.lock:
            self._state.server.start()
            self._state.stage = _server._ServerStage.STARTED
            # Generated servicers, such as reflection, name their methods to gRPC itself.
            for method in self._state.registered_method_handlers:
                _server._request_registered_call(self._state, method)
            _server._request_call(self._state)
        threading.Thread(target=self._serve, name="transport", daemon=True).start()

    def stop(self, grace: float) -> threading.Event:
        """Refuses new calls, and returns what is set when all others have ended.

        Args:
          grace: after how many seconds those that are left are cut off.
        """
        # gRPC cuts off calls that have arrived and that nobody has asked it for, with CANCELLED.
        self._has_taken_all.clear()
        self._has_taken_all.wait(min(grace, _TAKE_IN_SECONDS))
        return self._server.stop(grace)

    @property
    def has_calls(self) -> bool:
        """Returns whether a call has not ended."""
        return bool(self._state.rpc_states)

    def _serve(self) -> None:
        run_at_once()
        wake: float | None = _NOW
        while not self._is_over:
            with self._turn:
                # Without anything to do, wait for what comes; but not with a turn that others want.
                received = self._receive(_NOW if self._arrivals.are_taken_in else wake)
                if received < _MOST_EVENTS:
                    self._has_taken_all.set()
                wake = self._idle()
            if received < _MOST_EVENTS:
                self._arrivals.rest()

    def _receive_meanwhile(self) -> None:
        """Takes a turn unless another thread has it, which is about to receive all there is."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            if self._receive(_NOW):
                self._on_received()
        except Exception:
            # This thread runs batches, and others wait for it.
            _LOGGER.exception("cannot take in what has arrived")
        finally:
            self._turn.release()

    def _receive(self, until: float | None) -> int:
        """Handles the events that are there, but not for too long, and returns how many it handled.

        Args:
          until: how long to wait for the first, in seconds since 1970; None for ever.
        """
        queue = self._state.completion_queue
        received = without = 0
        while received < _MOST_EVENTS and not self._is_over:
            event = queue.poll(_NOW if received or without else until)
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                without += 1
                if without > _MOST_POLLS_WITHOUT_EVENT:
                    self._behind_since = None
                    break
                continue
            without = 0
            if self._behind_since is None:
                self._behind_since = time.monotonic()
            if not self._process(event):
                self._is_over = True
            # An event may hold the last reference to its call, which must not live while polling.
            event = None
            received += 1
        return received

    def _idle(self) -> float | None:
        try:
            return self._on_idle()
        except Exception:
            # The loop must go on: it is the only one who answers anything.
            _LOGGER.exception("cannot run what has arrived")
            return None

    def _process(self, event: Any) -> bool:
        """Returns whether the server goes on."""
        state, tag = self._state, event.tag
        is_registered = type(tag) is str and tag in state.registered_method_handlers
        is_call = tag is _server._REQUEST_CALL_TAG or is_registered
        if not is_call or not event.success:
            return bool(_server._process_event_and_continue(state, event))
        # gRPC does not repeat the name of a method that it was told of.
        method = tag if is_registered else event.call_details.method.decode(errors="replace")
        refusal = self._refusal(method, event)
        on_request = self._methods.get(method)
        if refusal is None and on_request is None:
            return bool(_server._process_event_and_continue(state, event))
        name = method.rpartition("/")[2]
        call = WireCall(self, event, name, on_request or _refuse_all)
        with state.lock:
            state.due.remove(tag)
            state.rpc_states.add(call)
            if state.stage is _server._ServerStage.STARTED:
                if is_registered:
                    _server._request_registered_call(state, method)
                else:
                    _server._request_call(state)
        if refusal is None:
            call.start()
        else:
            call.refuse(refusal)
        return True

    def _refusal(self, method: str, event: Any) -> ServingError | None:
        caller = _Caller(event)
        try:
            self._authorizer.check(method, caller)
        except ServingError as error:
            _LOGGER.info("%s from %s: %s", method, caller.peer(), error.status.name)
            return error
        except Exception:
            _LOGGER.exception("cannot tell whether %s is allowed", method)
            return InternalError("the call cannot be authorized; the server's log has the cause")
        if method == self._inference and self._is_left_unread(event):
            return self._refuse_unread()
        return None

    def _is_left_unread(self, event: Any) -> bool:
        """Returns whether a call that has arrived is refused without its message being read.

        A refusal that is based on the message takes twice as long as one that is not. Where calls
        come faster than that, they would get older and older before anyone sees them, and what is
        taken on at last be late. So those who have been refused already are not read meanwhile,
        except for what is less urgent.
        """
        now = time.monotonic()
        if self._behind_since is None or now - self._behind_since <= _BEHIND_SECONDS:
            return False
        caller = event.call.peer(), _urgency(event.call_details.deadline - time.time())
        return now - self._refused.get(caller, -math.inf) < _REFUSED_SECONDS


def _refuse_all(call: WireCall, message: bytes) -> None:
    raise AssertionError("a call that is refused has no message")


def _urgency(left: float) -> int:
    """Returns the power of two that is next to the seconds until a deadline."""
    return math.frexp(min(left, _LONGEST))[1]
