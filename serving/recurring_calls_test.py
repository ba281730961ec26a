from __future__ import annotations

import gc
import weakref
from pathlib import Path

import torch

from slipway.program import Method, load
from slipway.serving.recurring_calls import RecurringCalls
from slipway.tests.serving.programs import write_affine


def load_method(directory: Path) -> Method:
    write_affine(directory)
    return load(directory).methods["forward"]


def rows(count: int) -> list[torch.Tensor]:
    return [torch.zeros(count, 4)]


def test_the_fourth_call_of_the_same_sizes_is_due(tmp_path: Path) -> None:
    calls: RecurringCalls[str] = RecurringCalls()
    method = load_method(tmp_path)
    assert [calls.is_due(method, rows(2)) for _ in range(4)] == [False, False, False, True]
    assert not calls.is_due(method, rows(3))


def test_a_recording_is_found_by_its_method_and_its_sizes(tmp_path: Path) -> None:
    calls: RecurringCalls[str] = RecurringCalls()
    one, other = load_method(tmp_path / "one"), load_method(tmp_path / "other")
    assert calls.find(one, rows(2)) is None
    calls.is_due(one, rows(2))
    calls.add(one, rows(2), "two rows")
    assert calls.find(one, rows(2)) == "two rows"
    assert calls.find(one, rows(3)) is None
    assert calls.find(other, rows(2)) is None


def test_nothing_is_due_once_a_recording_failed(tmp_path: Path) -> None:
    calls: RecurringCalls[str] = RecurringCalls()
    method = load_method(tmp_path)
    calls.is_due(method, rows(2))
    calls.add(method, rows(2), "two rows")
    calls.add(method, rows(3), None)
    assert not any(calls.is_due(method, rows(4)) for _ in range(10))
    assert calls.find(method, rows(2)) == "two rows"


def test_sizes_that_do_not_recur_are_forgotten(tmp_path: Path) -> None:
    calls: RecurringCalls[str] = RecurringCalls()
    method = load_method(tmp_path)
    for _ in range(3):
        calls.is_due(method, rows(0))
    for count in range(1, 1025):
        calls.is_due(method, rows(count))
    assert not calls.is_due(method, rows(0))


def test_recordings_go_with_their_programs(tmp_path: Path) -> None:
    calls: RecurringCalls[torch.Tensor] = RecurringCalls()
    method = load_method(tmp_path)
    calls.is_due(method, rows(2))
    recording = torch.zeros(3)
    kept = weakref.ref(recording)
    calls.add(method, rows(2), recording)
    del recording, method
    gc.collect()
    assert kept() is None
