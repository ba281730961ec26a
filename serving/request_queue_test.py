from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from slipway.serving.model import Environment
from slipway.serving.request_queue import PendingRequest, RequestQueue, log_context
from slipway.tests.serving.scheduling import Answer, Bench, lookup, no_rows

REQUESTS = st.tuples(
    st.sampled_from([1, 1, 1, 2]), st.sampled_from([1, 1, 1, 2]), st.sampled_from([1, 2, 3, 0])
)
"""Priority, length and rows, of which many can share a batch."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root: Path = tmp_path_factory.mktemp("repository")
    made = Bench(root, Environment())
    yield made
    made.close()


def pending_of(bench: Bench, priority: int, length: int, rows: int) -> PendingRequest:
    message = lookup([[0] * length] * rows, priority=priority) if rows else no_rows(length)
    return bench.pending(message, Answer())


@given(data=st.data(), wanted=st.lists(REQUESTS, min_size=4, max_size=16))
def test_batches_are_of_one_kind_the_most_urgent_first_and_everything_once(
    bench: Bench, data: st.DataObject, wanted: list[tuple[int, int, int]]
) -> None:
    queue = RequestQueue()
    waiting = [pending_of(bench, *item) for item in wanted]
    for pending in waiting:
        queue.put(pending)
    for pending in data.draw(st.lists(st.sampled_from(waiting), unique=True)):
        assert queue.remove(pending)
        assert not queue.remove(pending)
        waiting.remove(pending)
    max_rows = data.draw(st.integers(1, 12))
    legal_rows = data.draw(st.integers(1, 12))

    while waiting:
        assert queue.count == len(waiting) == len(list(queue))
        assert queue.rows == sum(pending.rows for pending in waiting)
        assert queue.size == sum(pending.request.size for pending in waiting)
        for priority in (1, 2, 3):
            assert queue.rows_before(priority) == sum(
                pending.rows for pending in waiting if pending.request.plan.priority <= priority
            )
        batch = queue.take(max_rows, lambda _, rows: rows <= legal_rows)
        first = batch[0]
        urgency = [pending.request.plan.priority for pending in waiting]
        assert waiting.index(first) == urgency.index(min(urgency))
        rows = sum(pending.rows for pending in batch)
        assert len(batch) == 1 or rows <= min(max_rows, legal_rows)
        assert len({pending.request.plan.group for pending in batch}) == 1
        alike = [
            pending
            for pending in waiting
            if pending.request.plan.group == first.request.plan.group
            and pending.request.plan.priority == first.request.plan.priority
        ]
        if first.rows:
            assert batch == alike[: len(batch)]
            if len(batch) < len(alike):
                assert rows + alike[len(batch)].rows > min(max_rows, legal_rows)
        else:
            assert batch == [first]
        for pending in batch:
            waiting.remove(pending)
    assert queue.take(max_rows, lambda _, rows: True) == []
    assert (queue.count, queue.rows, queue.size) == (0, 0, 0)


def test_what_has_expired_is_taken_out(bench: Bench) -> None:
    queue = RequestQueue()
    late, early = (bench.pending(lookup(), Answer(), expires_in=seconds) for seconds in (60, 30))
    never = bench.pending(lookup(), Answer())
    for pending in (late, never, early):
        queue.put(pending)
    assert queue.expired(early.expires) == [early]
    assert queue.expired(late.expires) == [late]
    assert list(queue) == [never]
    assert queue.count == 1


def test_what_leaves_before_its_turn_is_freed_at_once(bench: Bench) -> None:
    queue = RequestQueue()
    queue.put(bench.pending(lookup(), Answer()))
    pending = bench.pending(lookup(), Answer())
    queue.put(pending)
    queue.put(bench.pending(lookup(), Answer()))
    assert queue.remove(pending)
    reference = weakref.ref(pending)
    del pending
    assert reference() is None
    assert queue.count == 2


@pytest.mark.parametrize(
    ("method", "expected"), [("ModelInfer", "call"), ("ModelStreamInfer", "call/request")]
)
def test_requests_of_a_stream_are_told_apart_in_the_log(method: str, expected: str) -> None:
    reply = Answer()
    reply.method, reply.metadata = method, (("x-request-id", "call"),)
    assert log_context(reply, b"request") == {"request_id": expected}


def padded_alike(bench: Bench, length: int, rows: int) -> PendingRequest:
    """Returns a request as if lengths could be padded, and each element had one byte."""
    pending = pending_of(bench, 1, length, rows)
    plan = pending.request.plan
    pending.request.plan = dataclasses.replace(plan, group=(0,), row_size=length)
    return pending


@pytest.mark.parametrize(
    ("requests", "worth", "expected"),
    [
        # Equals as they came.
        ([(8, 1), (6, 1), (6, 1), (9, 1), (9, 1)], 10**9, [0, 3, 4, 1, 2]),
        # What a smaller one needs, it needs for each of its rows.
        ([(8, 1), (6, 3), (9, 1)], 5, [0, 2]),
        # It is padded to what the largest has.
        ([(8, 1), (6, 1), (9, 1)], 2, [0, 2]),
        # A quarter of all rows of a smaller one, or of all those that a larger one has padded.
        ([(8, 1), (6, 2)], None, [0, 1]),
        ([(6, 2), (8, 1)], None, [0, 1]),
    ],
)
def test_padding_is_counted_in_bytes_of_all_rows(
    bench: Bench, requests: list[tuple[int, int]], worth: float | None, expected: list[int]
) -> None:
    queue = RequestQueue()
    waiting = [padded_alike(bench, *item) for item in requests]
    for pending in waiting:
        queue.put(pending)
    assert queue.take(16, lambda _, rows: True, worth) == [waiting[index] for index in expected]


@pytest.mark.parametrize(
    ("worth", "expected"),
    [
        (None, [8, 8, 7, 6]),  # a quarter of what is padded may be padding
        (0, [8, 8]),
        (1, [8, 8, 7]),
        (8, [8, 8, 7, 6, 5, 4, 3, 9]),
        (10**9, [8, 8, 7, 6, 5, 4, 3, 9, 12]),
    ],
)
def test_requests_are_padded_as_far_as_that_is_worth_a_batch_less(
    bench: Bench, worth: float | None, expected: list[int]
) -> None:
    queue = RequestQueue()
    for length in (8, 3, 12, 6, 9, 8, 4, 7, 5):
        queue.put(padded_alike(bench, length, 1))
    batch = queue.take(16, lambda _, rows: True, worth)
    assert [pending.row_size for pending in batch] == expected
