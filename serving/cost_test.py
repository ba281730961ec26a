from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from slipway.serving.cost import BatchCost


def learned(per_batch: float, per_byte: float, sizes: list[int], noise: float = 0.0) -> BatchCost:
    cost = BatchCost()
    generator = random.Random(5)
    for size in sizes:
        cost.add(size, (per_batch + per_byte * size) * (1 + noise * generator.random()))
    return cost


def sizes(count: int) -> list[int]:
    generator = random.Random(4)
    return [generator.randrange(100, 100_000) for _ in range(count)]


def test_nothing_is_known_at_first() -> None:
    cost = learned(1e-3, 1e-8, sizes(8))
    assert not cost.is_known
    assert cost.worth is None
    assert cost.seconds(10**9) == 0
    assert not cost.pays_alone(10**9)
    assert learned(1e-3, 1e-8, sizes(9)).is_known


def test_the_very_first_batch_says_nothing() -> None:
    cost = BatchCost()
    cost.add(1000, 30.0)
    for size in sizes(200):
        cost.add(size, 1e-3 + 1e-8 * size)
    assert cost.seconds(50_000) == pytest.approx(1.5e-3, rel=0.1)


def test_the_shares_of_the_batch_and_of_its_bytes_are_told_apart() -> None:
    cost = learned(1e-3, 1e-8, sizes(200), noise=0.05)
    assert cost.worth == pytest.approx(0.5e5, rel=0.1)
    assert cost.seconds(50_000) == pytest.approx(1.5e-3, rel=0.1)
    assert cost.pays_alone(200_000)
    assert not cost.pays_alone(50_000)


def test_what_takes_less_than_to_wake_a_thread_does_not_pay_alone() -> None:
    cost = learned(1e-6, 1e-8, sizes(200))
    assert cost.pays_alone(25_000)
    assert not cost.pays_alone(15_000)


def test_a_stall_of_the_machine_says_little() -> None:
    cost = learned(1e-3, 1e-8, sizes(200))
    cost.add(1000, 30.0)
    assert cost.seconds(1000) < 1.3e-3


def test_what_changes_is_noticed() -> None:
    cost = learned(1e-3, 1e-8, sizes(200))
    for size in sizes(400):
        cost.add(size, 2e-3 + 2e-8 * size)
    assert cost.seconds(50_000) == pytest.approx(3e-3, rel=0.1)


@pytest.mark.parametrize("alike", [[4096], [4090, 4100]])
def test_batches_of_about_one_size_have_a_time_too(alike: list[int]) -> None:
    cost = learned(2e-3, 0.0, alike * 50)
    assert cost.seconds(4096) == pytest.approx(2e-3, rel=0.01)
    # For all that is known, it may be due to the size.
    assert cost.seconds(8192) == pytest.approx(4e-3, rel=0.01)


def test_batches_of_one_size_that_become_faster_leave_no_negative_share() -> None:
    cost = learned(1e-3, 1e-8, sizes(200))
    for seconds in [1e-3] * 500 + [1e-4] * 500:
        cost.add(4096, seconds)
    assert cost.seconds(4096) == pytest.approx(1e-4, rel=0.01)
    assert cost.seconds(10**6) > 0


@given(
    st.lists(
        st.tuples(st.integers(0, 2**40), st.floats(0, 1e4, allow_nan=False)),
        max_size=60,
    )
)
@example([(0, 1.0)] * 20)
@example([(100, 0.0), (200, 1.0)] * 10)
def test_it_never_gives_nonsense(measured: list[tuple[int, float]]) -> None:
    cost = BatchCost()
    for size, seconds in measured:
        cost.add(size, seconds)
        assert 0 <= cost.seconds(size) < float("inf")
        assert cost.worth is None or cost.worth >= 0
