from __future__ import annotations

import os
from collections.abc import Callable

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
