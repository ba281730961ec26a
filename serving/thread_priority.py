"""Which threads of this process go before others, where Linux decides."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import threading

__all__ = ["give_way", "run_at_once"]

_NICE = 7
"""How much lower than others, as setpriority(2) counts: with a fifth of the weight.

With more weight they keep the thread that receives from a processor for some milliseconds, now and
then, though it wants it for microseconds. With less they come to nothing where small requests are
refused by the ten thousand a second.
"""

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""The number of sched_setattr(2), for which the C library has no function before 2.41."""

_RESET_ON_FORK = 1
"""Threads that a thread starts do not take after it."""

_SHORTEST_SLICE = 100_000
"""Nanoseconds; Linux allows no less."""


def give_way() -> None:
    """Lets other threads of this process go before this one, which computes.

    The one that receives requests has to keep up, above all when there are more of them than can
    be run: those that come too late have cost as much as those that come in time.
    """
    # A sandbox may allow none of it. The thread has to go on all the same: others wait for it.
    with contextlib.suppress(OSError):
        # To Linux each thread is a process of its own here, and its helpers inherit what it has.
        usual = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), usual + _NICE)


def run_at_once() -> None:
    """Asks that this thread, which mostly waits, need not wait for a processor as well.

    It asks for short slices of time. Since 6.12, Linux has whoever wakes and wants less go before
    whoever wants more; else a thread that computes would keep its processor for some milliseconds.
    Does nothing where Linux is older, on other processors, under other policies than the usual, and
    in sandboxes that do not allow it.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            return
        nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
        attributes = (os.SCHED_OTHER, _RESET_ON_FORK, nice, 0, _SHORTEST_SLICE, 0, 0)
        request = struct.pack("=IIQiIQQQ", struct.calcsize("=IIQiIQQQ"), *attributes)
        ctypes.CDLL(None).syscall(number, 0, request, 0)
