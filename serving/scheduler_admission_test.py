"""Which requests are let in, and which are not run: queues, memory, deadlines, clients that go."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from slipway.serving.errors import DeadlineError, OverloadedError, ResourceExhaustedError
from slipway.serving.memory_budget import MemoryBudget
from slipway.tests.serving.scheduling import (
    Answer,
    Bench,
    MakeBench,
    affine,
    benches,
    failures,
    finish,
    lookup,
    sizes,
    spend_processor,
)


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    with benches(tmp_path) as make:
        yield make


def learn_rows(bench: Bench) -> None:
    """Has it learn what a row of affine takes."""
    for _ in range(3):
        answer = bench.submit(affine())
        bench.run()
        answer.wait()


def test_a_queue_is_bounded_in_requests(make_bench: MakeBench) -> None:
    bench = make_bench(max_queue_requests=2)
    learn_rows(bench)
    busy = bench.occupy()
    answers = [bench.submit(affine()) for _ in range(2)]
    with pytest.raises(
        OverloadedError, match=r"has 2 requests waiting, .*; max_queue_requests is 2, "
    ) as caught:
        bench.submit(affine())
    assert caught.value.retry_after > 0
    finish(bench, busy, answers)
    assert all(answer.error is None for answer in answers)


@pytest.mark.parametrize(("sizes", "taken"), [(0.5, 1), (1.9, 1), (2.0, 2), (2.9, 2)])
def test_a_queue_is_bounded_in_bytes_but_takes_one_request_always(
    make_bench: MakeBench, sizes: float, taken: int
) -> None:
    size = len(affine())
    bench = make_bench(max_queue_bytes=int(sizes * size))
    busy = bench.occupy()
    answers = [bench.submit(affine()) for _ in range(taken)]
    assert bench.model("affine").scheduler.queued == (taken, taken * size)
    with pytest.raises(OverloadedError):
        bench.submit(affine())
    finish(bench, busy, answers)
    assert all(answer.outputs for answer in answers)


def test_an_urgent_request_takes_the_place_of_the_least_urgent_that_came_last(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(max_queue_requests=4)
    busy = bench.occupy()
    first, last, urgent, least = (
        bench.submit(affine(priority=priority)) for priority in (8, 8, 2, 9)
    )
    more = [bench.submit(affine(priority=3)), bench.submit(affine(priority=7))]
    for refused in (least, last):
        refused.wait()
        assert isinstance(refused.error, OverloadedError)
        assert "more urgent ones have come; max_queue_requests is 4" in str(refused.error)
        assert refused.error.retry_after >= 0
    with pytest.raises(OverloadedError, match=r"has 4 requests waiting, .*max_queue_requests is 4"):
        bench.submit(affine(priority=8))
    finish(bench, busy, [first, urgent, *more])
    assert all(answer.outputs for answer in (first, urgent, *more))
    assert failures(bench) == 2


def test_as_many_give_way_as_there_is_room_wanted_for(make_bench: MakeBench) -> None:
    small, large = len(affine(priority=9)), len(affine(rows=8, priority=1))
    bench = make_bench(max_queue_bytes=6 * small)
    busy = bench.occupy()
    waiting = [bench.submit(affine(priority=9)) for _ in range(6)]
    urgent = bench.submit(affine(rows=8, priority=1))
    kept = (6 * small - large) // small
    assert 0 < kept < 5
    assert bench.model("affine").scheduler.queued == (1 + kept, large + kept * small)
    # All the rest together would not make room for another.
    with pytest.raises(OverloadedError, match="max_queue_requests is 1024"):
        bench.submit(affine(rows=8, priority=9))
    for refused in waiting[kept:]:
        refused.wait()
        assert isinstance(refused.error, OverloadedError)
    finish(bench, busy, [urgent, *waiting[:kept]])
    assert all(answer.outputs for answer in (urgent, *waiting[:kept]))


def test_what_gives_way_leaves_its_memory_to_the_other(make_bench: MakeBench) -> None:
    bench = make_bench(max_queue_requests=1, memory=2 * len(affine(priority=9)))
    busy = bench.occupy()
    waiting = bench.submit(affine(priority=9))
    held = bench.memory.used
    urgent = bench.submit(affine(priority=1))
    waiting.wait()
    assert isinstance(waiting.error, OverloadedError)
    assert bench.memory.used == held
    # It is no larger, so that nobody else has to wait for memory.
    finish(bench, busy, [urgent])
    assert urgent.outputs


def test_nobody_gives_way_for_a_request_that_is_refused(make_bench: MakeBench) -> None:
    bench = make_bench(max_queue_requests=2)
    learn_rows(bench)
    busy = bench.occupy()
    waiting = [bench.submit(affine(priority=priority)) for priority in (1, 9)]
    with pytest.raises(OverloadedError, match="would not answer this request before"):
        bench.submit(affine(priority=2), expires_in=1e-9)
    finish(bench, busy, waiting)
    assert all(answer.outputs for answer in waiting)


def test_memory_is_bounded_over_all_models_and_freed_by_answers(make_bench: MakeBench) -> None:
    bench = make_bench(memory=len(affine()) + len(lookup()))
    busy = bench.occupy()
    other = bench.submit(lookup())
    with pytest.raises(OverloadedError, match=r"the server holds .* bytes of requests"):
        bench.submit(lookup())
    finish(bench, busy, [])
    bench.run("lookup")
    other.wait()
    assert other.outputs


def test_a_request_that_cannot_be_run_in_time_is_refused_at_once(make_bench: MakeBench) -> None:
    bench = make_bench()
    learn_rows(bench)
    # Unless nothing waits: there is nothing else to do.
    bench.submit(affine(), expires_in=1e-9)
    busy = bench.occupy()
    waiting = [bench.submit(affine()) for _ in range(3)]
    with pytest.raises(OverloadedError, match="would not answer this request before") as caught:
        bench.submit(affine(), expires_in=1e-9)
    assert caught.value.retry_after > 0
    answer = bench.submit(affine(), expires_in=3600)
    finish(bench, busy, [*waiting, answer])
    assert answer.outputs


@pytest.fixture
def slow_lookup(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Lookup takes 12.5 ms of a processor for each token."""
    spend_processor(monkeypatch, lambda tokens: tokens.numel() / 80)
    return make_bench()


def learn(bench: Bench, counts: Sequence[int]) -> float:
    """Has it learn how long lookup takes; returns the seconds of as many tokens as the first."""
    seconds = []
    for _ in range(5):
        for count in counts:
            started = time.monotonic()
            answer = bench.submit(lookup([[1] * count]))
            bench.run("lookup")
            answer.wait()
            seconds.append(time.monotonic() - started)
    return sum(seconds[:: len(counts)]) / 5


def test_a_request_is_not_taken_on_if_it_could_be_begun_in_time_but_not_answered(
    slow_lookup: Bench,
) -> None:
    learn(slow_lookup, (16, 1))
    busy = slow_lookup.occupy("lookup")
    waiting = slow_lookup.submit(lookup([[1] * 8]))
    # Each of the two takes about 100 ms.
    with pytest.raises(OverloadedError, match="would not answer this request before"):
        slow_lookup.submit(lookup([[1] * 8]), expires_in=0.15)
    finish(slow_lookup, busy, [waiting], "lookup")
    assert waiting.outputs


def test_what_is_less_urgent_takes_no_time_from_a_request(slow_lookup: Bench) -> None:
    seconds = learn(slow_lookup, (16,))
    busy = slow_lookup.occupy("lookup")
    # Taken for long ones, as only these have been seen.
    waiting = [slow_lookup.submit(lookup()) for _ in range(40)]
    soon = 20 * seconds
    with pytest.raises(OverloadedError, match="would not answer this request before"):
        slow_lookup.submit(lookup(), expires_in=soon)
    urgent = slow_lookup.submit(lookup(priority=7), expires_in=soon)
    finish(slow_lookup, busy, [urgent, *waiting], "lookup")
    assert urgent.outputs


def test_a_request_is_not_run_if_it_takes_longer_than_there_is_left(slow_lookup: Bench) -> None:
    seconds = learn(slow_lookup, (16, 1, 1, 1, 1))
    assert not slow_lookup.model("lookup").scheduler.is_inline
    busy = slow_lookup.occupy("lookup")
    late = slow_lookup.submit(lookup([[1] * 16]), expires_in=3.5 * seconds)
    time.sleep(3 * seconds)  # longer than it takes, or it would be tried all the same
    # There is half of the time left that it takes. Most others need less.
    finish(slow_lookup, busy, [late], "lookup")
    assert isinstance(late.error, DeadlineError)
    assert "was not run" in str(late.error)


@pytest.mark.parametrize("instances", [1, 2])
def test_who_is_refused_is_told_how_long_the_rows_that_wait_take(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, instances: int
) -> None:
    spend_processor(monkeypatch, lambda x: 2e-3 * x.shape[0])
    bench = make_bench(instances=instances)
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        answer = bench.submit(affine(rows=8))
        bench.run()
        answer.wait()
        bench.settle()
        seconds.append(time.monotonic() - started)
    busy = bench.occupy()
    waiting = bench.submit(affine(rows=8))
    with pytest.raises(OverloadedError) as caught:
        bench.submit(affine(), expires_in=1e-9)
    assert 16e-3 <= caught.value.retry_after * instances <= max(seconds)
    finish(bench, busy, [waiting])


def test_a_request_whose_time_is_over_is_refused_at_once(make_bench: MakeBench) -> None:
    bench = make_bench()
    with pytest.raises(DeadlineError):
        bench.submit(affine(), expires_in=0)
    assert bench.model("affine").scheduler.queued == (0, 0)


def test_a_request_that_did_not_wait_is_tried_however_long_it_seems_to_take(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    with monkeypatch.context() as patch:
        spend_processor(patch, lambda tokens: 0.03)
        learn(bench, (1, 1))
    answer = bench.submit(lookup([[1] * 16] * 4), expires_in=1.5)  # by that it takes 1.9 seconds
    bench.run("lookup")
    answer.wait()
    assert answer.outputs


@pytest.mark.parametrize("is_looked_for", [True, False])
def test_a_request_that_expires_in_the_queue_is_never_run(
    make_bench: MakeBench, is_looked_for: bool
) -> None:
    bench = make_bench()
    busy = bench.occupy()
    late, good = bench.submit(affine(), expires_in=1e-9), Answer()
    pending = bench.pending(affine(), good, expires_in=3600)
    scheduler = bench.model("affine").scheduler
    scheduler.submit(pending)
    if is_looked_for:
        assert scheduler.expire() == pending.expires
        late.wait()
        assert scheduler.queued == (1, len(affine()))
    finish(bench, busy, [late, good])
    assert isinstance(late.error, DeadlineError)
    assert "was not run" in str(late.error)
    assert good.outputs
    assert sizes(bench) == {1: 2}
    assert failures(bench) == 1


def test_a_request_that_no_message_can_hold_is_not_let_in_alone() -> None:
    budget = MemoryBudget(2**20)
    budget.take(2**31 - 1)
    budget.give_back(2**31 - 1)
    with pytest.raises(ResourceExhaustedError, match="may hold 1048576 of requests: send a small"):
        budget.take(2**31)
    assert budget.used == 0
    MemoryBudget(2**40).take(2**31)


def test_a_request_whose_client_goes_frees_what_it_held(make_bench: MakeBench) -> None:
    bench = make_bench(memory=2 * len(affine()))
    scheduler = bench.model("affine").scheduler
    busy = bench.occupy()
    pending = bench.pending(affine(), Answer())
    scheduler.submit(pending)
    with pytest.raises(OverloadedError):
        bench.submit(affine())
    scheduler.cancel(pending)
    scheduler.cancel(pending)
    assert scheduler.queued == (0, 0)
    good = bench.submit(affine())
    finish(bench, busy, [good])
    assert sizes(bench) == {1: 2}
    assert failures(bench) == 1


def test_a_client_that_has_gone_is_not_run_for(make_bench: MakeBench) -> None:
    bench = make_bench()
    busy = bench.occupy()
    gone, good = bench.submit(affine()), bench.submit(affine())
    gone.cancelled = True
    finish(bench, busy, [good])
    assert sizes(bench) == {1: 2}
    assert failures(bench) == 1
    assert not gone.entered.is_set()


def test_who_has_gone_or_is_late_is_not_run_for_again(make_bench: MakeBench) -> None:
    bench = make_bench()
    busy = bench.occupy("lookup")
    good = bench.submit(lookup([[1]]), Answer(is_held=True))
    bad, gone = bench.submit(lookup([[77]])), bench.submit(lookup())
    late = bench.submit(lookup(), expires_in=0.2)
    expires = time.monotonic() + 0.2
    busy.release()
    good.wait()  # the first of them that is run alone
    gone.cancelled = True
    while time.monotonic() < expires:
        pass
    good.release()
    bad.wait()
    late.wait()
    bench.close()
    assert isinstance(late.error, DeadlineError)
    assert not gone.entered.is_set()
    assert sizes(bench, "lookup") == {1: 2}
    assert failures(bench, "lookup") == 3
