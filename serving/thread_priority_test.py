from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from slipway.serving.thread_priority import give_way, run_at_once

_T = TypeVar("_T")


def in_thread(function: Callable[[], _T]) -> _T:
    """Calls a function in a thread of its own, whose priority ends with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def scheduling() -> tuple[int, ...]:
    """Returns policy, flags, nice value, priority and slice of this thread, as Linux has them."""
    number = {"x86_64": 315, "aarch64": 275}.get(platform.machine())  # sched_getattr(2)
    if number is None:
        pytest.skip("nothing is asked for on other processors")
    layout = "=IIQiIQQQ"
    attributes = ctypes.create_string_buffer(struct.calcsize(layout))
    if ctypes.CDLL(None).syscall(number, 0, attributes, len(attributes), 0):
        pytest.skip("the system does not say how it schedules")
    return struct.unpack(layout, attributes)[1:6]


@pytest.mark.parametrize(
    ("function", "call"),
    [
        (give_way, "getpriority"),
        (give_way, "setpriority"),
        (run_at_once, "getpriority"),
        (run_at_once, "sched_getscheduler"),
    ],
)
def test_a_sandbox_that_allows_no_look_at_priorities_ends_no_thread(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[], None], call: str
) -> None:
    def refuse(*_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, call, refuse)
    function()


def test_a_thread_gives_way_once_and_others_stay_as_they_were() -> None:
    def usual() -> int:
        return os.getpriority(os.PRIO_PROCESS, os.getpid())

    def give_way_twice() -> int:
        give_way()
        give_way()  # as a helper does, which inherits what its starter has
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = usual()
    own = in_thread(give_way_twice)
    assert own == min(before + 7, 19)
    assert usual() == before


def test_a_thread_that_is_to_run_at_once_asks_for_short_slices_and_for_nothing_else() -> None:
    def run() -> tuple[tuple[int, ...], tuple[int, ...]]:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        before = scheduling()
        run_at_once()
        return before, scheduling()

    (policy, _, nice, priority, usual), after = in_thread(run)
    assert after[:4] == (policy, 1, nice, priority)  # the flag: its children do not take after it
    is_told = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (6, 12)
    assert after[4] == (100_000 if is_told else usual)


def test_a_thread_of_another_policy_keeps_it() -> None:
    def run() -> int:
        try:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        except OSError:
            pytest.skip("the system has one policy")
        run_at_once()
        return os.sched_getscheduler(0)

    assert in_thread(run) == os.SCHED_BATCH
