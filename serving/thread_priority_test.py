from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from slipway.serving.thread_priority import give_way, run_at_once


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
    with ThreadPoolExecutor(1) as pool:
        own = pool.submit(give_way_twice).result()
    assert own == min(before + 7, 19)
    assert usual() == before
