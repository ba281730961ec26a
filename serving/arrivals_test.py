from __future__ import annotations

import threading
import time

from slipway.serving.arrivals import Arrivals

RESTING = 1.9e-3
"""Seconds; it rests for longer unless it is called back."""


def rested(arrivals: Arrivals) -> float:
    """Returns for how many seconds the receiving thread rests."""
    started = time.monotonic()
    arrivals.rest()
    return time.monotonic() - started


def test_nobody_rests_while_a_processor_is_free() -> None:
    arrivals = Arrivals(2)
    arrivals.begin()
    assert min(rested(arrivals) for _ in range(20)) < RESTING


def test_the_receiving_thread_rests_while_all_run_batches() -> None:
    arrivals = Arrivals(2)
    arrivals.begin()
    arrivals.begin()
    assert min(rested(arrivals) for _ in range(20)) > RESTING
    arrivals.end()
    assert min(rested(arrivals) for _ in range(20)) < RESTING


def test_it_rests_for_less_while_requests_are_refused() -> None:
    arrivals = Arrivals(1)
    arrivals.begin()
    arrivals.note_refusal()
    assert min(rested(arrivals) for _ in range(20)) < RESTING
    time.sleep(0.15)
    assert min(rested(arrivals) for _ in range(20)) > RESTING


def test_it_is_called_back_by_whoever_has_nothing_to_run() -> None:
    arrivals = Arrivals(1)
    arrivals.begin()
    is_over = threading.Event()

    def call_back() -> None:
        while not is_over.is_set():
            arrivals.await_more()
            time.sleep(1e-4)

    idle = threading.Thread(target=call_back)
    idle.start()
    shortest = min(rested(arrivals) for _ in range(100))
    is_over.set()
    idle.join()
    assert shortest < RESTING


def test_whoever_ends_a_batch_takes_in_what_has_arrived() -> None:
    arrivals = Arrivals(1)
    arrivals.take_in()  # nobody receives yet
    taken: list[threading.Thread] = []
    arrivals.connect(lambda: taken.append(threading.current_thread()))
    arrivals.take_in()
    assert taken == [threading.current_thread()]


def test_only_the_receiving_thread_takes_in_while_requests_are_refused() -> None:
    arrivals = Arrivals(1)
    taken: list[threading.Thread] = []
    arrivals.connect(lambda: taken.append(threading.current_thread()))
    arrivals.note_refusal()
    arrivals.take_in()
    assert not taken
    time.sleep(0.15)
    arrivals.take_in()
    assert taken == [threading.current_thread()]
