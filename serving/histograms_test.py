"""Histograms, and what is estimated from them."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from slipway.serving.histograms import BATCH_BOUNDS, DURATION_BOUNDS, Histogram, quantile

values = st.floats(0, 100, allow_nan=False)


def test_bounds_ascend() -> None:
    for bounds in (DURATION_BOUNDS, BATCH_BOUNDS):
        assert list(bounds) == sorted(set(bounds))


@given(st.lists(values))
def test_every_value_is_in_the_bucket_that_its_bound_ends(items: list[float]) -> None:
    histogram = Histogram()
    histogram.add_all(items)
    assert histogram.count == len(items)
    assert histogram.total == pytest.approx(sum(items))
    for index, bound in enumerate(histogram.bounds):
        # What Prometheus calls le: the counts of a bucket and of all before it.
        assert sum(histogram.counts[: index + 1]) == sum(item <= bound for item in items)


@given(values, st.integers(0, 5))
def test_a_value_may_count_several_times(value: float, times: int) -> None:
    once, at_once = Histogram(), Histogram()
    for _ in range(times):
        once.add(value)
    at_once.add(value, times)
    assert once.counts == at_once.counts
    assert once.total == pytest.approx(at_once.total)


def test_a_copy_is_not_changed_by_later_values() -> None:
    histogram = Histogram()
    histogram.add(1.0)
    copy = histogram.copy()
    histogram.add(2.0)
    assert (copy.count, copy.total) == (1, 1.0)


@given(st.lists(st.floats(0, 10), min_size=1), st.sampled_from([0.0, 0.5, 0.95, 0.99]))
def test_a_quantile_is_in_the_bucket_of_the_true_one(items: list[float], share: float) -> None:
    histogram = Histogram()
    histogram.add_all(items)
    estimate = quantile(histogram.bounds, histogram.counts, share)
    assert estimate is not None
    rank = max(1, -(-len(items) * share // 1))
    true = sorted(items)[int(rank) - 1]
    upper = next(bound for bound in DURATION_BOUNDS if true <= bound)
    lower = max([0.0, *(bound for bound in DURATION_BOUNDS if bound < true)])
    assert lower <= estimate <= upper


def test_a_quantile_of_nothing_is_none_and_beyond_all_bounds_the_last() -> None:
    assert quantile((1.0, 2.0), [0, 0, 0], 0.5) is None
    assert quantile((1.0, 2.0), [0, 0, 3], 0.5) == 2.0
