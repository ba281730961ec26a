"""The server when more is asked of it than it can do.

    bazel run //bench:overload

Finds how much the server does at most, in closed loops of 32, 128 and 256 callers: a server that
batches does more when more is waiting. Then sends three times as much for a minute, each request
with a deadline, and looks at what comes back: an answer in time, an answer too late, a refusal
(RESOURCE_EXHAUSTED at once, or DEADLINE_EXCEEDED), another failure, or nothing at all. Every answer
is compared with the program's. Exits 1 if one was wrong, or a request failed in another way.

The loop that did most runs again right before the overload and after, and what the server does at
most is the mean of these: machines become faster and slower, and the largest of three figures is
the one that chance has made larger.

Requests have the most rows that the encoder takes, so that the time goes into the model: to refuse
a request takes as long as to receive it, and who is busy with receiving alone cannot answer three
times as many.

Ends with one JSON object, {"goodput_of_capacity", "p99_ms", "lost", "refused", "rss_growth_mb"}:
right answers in time a second, divided by what the server does at most; the 99th percentile of all
right answers from when they were due; how many requests had no answer; how many were refused; and
how much the server's resident memory grew, in 10^6 bytes, from before the overload to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import threading
from collections.abc import Sequence

import numpy as np

from slipway.bench.load_generator import (
    Caller,
    ClosedLoad,
    Request,
    Target,
    closed_loop,
    open_loop,
    percentile,
)
from slipway.bench.server_process import ServerProcess, compute_worker, slipway_server
from slipway.bench.subjects import INFER, SUBJECTS, expected_outputs, inputs, requests

_CALLERS = (32, 128, 256)


def main() -> None:
    options = _parse()
    with contextlib.ExitStack() as stack:
        with compute_worker(threads=1) as worker:
            expected = expected_outputs(worker, options.model)
        made = requests(
            options.model,
            [
                {name: np.repeat(array, options.rows, axis=0) for name, array in call.items()}
                for call in inputs(options.model)
            ],
            [np.repeat(output, options.rows, axis=0) for output in expected],
        )
        server = stack.enter_context(slipway_server(options.server_flag))
        target = Target(server.address, INFER)

        callers = _best_callers(target, made, options.capacity_seconds)
        before = _closed_loop(target, made, callers, options.capacity_seconds)
        with _MemoryWatch(server) as memory:
            load = open_loop(
                target,
                made,
                rate=options.factor * before.rate,
                seconds=options.seconds,
                connections=options.connections,
                deadline=options.deadline_ms / 1e3,
            )
        after = _closed_loop(target, made, callers, options.capacity_seconds)
    refused = sorted(load.refused)
    lags, accepted = sorted(load.lags), sorted(load.good + load.late)
    print(
        f"offered: {load.sent / load.seconds:.0f} requests/s for {load.seconds:.0f} s with "
        f"deadlines of {options.deadline_ms:.0f} ms; sent late by {_milliseconds(lags)}; "
        f"load generator {load.generator_share:.2f} cores"
    )
    print(
        f"answers: {len(load.good)} in time, {len(load.late)} late, {len(refused)} refused at once "
        f"({_milliseconds(refused)}), "
        f"{load.expired} expired, {load.lost} lost, {load.failed.total()} failed: "
        f"{dict(load.failed.most_common(3))}, {load.wrong.total()} wrong"
    )
    print(f"memory, MB each second: {[round(size / 1e6) for size in memory.sizes]}")
    figures = {
        "goodput_of_capacity": round(load.goodput / ((before.rate + after.rate) / 2), 3),
        "p99_ms": round(percentile(accepted, 99) * 1e3, 1) if accepted else None,
        "lost": load.lost,
        "refused": len(refused) + load.expired,
        "rss_growth_mb": round((memory.sizes[-1] - memory.sizes[0]) / 1e6, 1),
    }
    print(json.dumps(figures))
    if load.wrong or load.failed:
        raise SystemExit("the server gave answers that are neither right nor refusals: see above")
    if after.wrong:
        raise SystemExit(f"after the overload, without any: {after.wrong.most_common(3)}")


def _best_callers(target: Target, made: Sequence[Request], seconds: float) -> int:
    """Returns how many callers got the most answers."""
    rates: dict[int, float] = {}
    for count in _CALLERS:
        load = _closed_loop(target, made, count, seconds)
        if load.wrong:
            # A queue that is full refuses, and the callers try again at once.
            print(f"  {load.wrong.most_common(3)}")
            break
        rates[count] = load.rate
    if not rates:
        raise SystemExit("the server refused requests without overload: see above")
    return max(rates, key=rates.__getitem__)


def _closed_loop(target: Target, made: Sequence[Request], count: int, seconds: float) -> ClosedLoad:
    callers = [
        Caller(target, [*made[start:], *made[:start]])
        for start in (number % len(made) for number in range(count))
    ]
    load = closed_loop(callers, seconds, warm_up=1)
    print(
        f"capacity: {load.rate:.0f} requests/s for {count} callers, "
        f"{_milliseconds(load.latencies)}; load generator {load.generator_share:.2f} cores",
        flush=True,
    )
    return load


def _milliseconds(seconds: Sequence[float]) -> str:
    p50, p99 = (percentile(seconds, percent) * 1e3 for percent in (50, 99))
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"


class _MemoryWatch:
    """Reads a server's resident memory at once and each second of a `with` block."""

    def __init__(self, server: ServerProcess) -> None:
        self.sizes = [server.memory()]
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(1):
            self.sizes.append(self._server.memory())

    def __enter__(self) -> _MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="overload", description="The server under overload.")
    parser.add_argument("--model", choices=SUBJECTS, default="encoder")
    parser.add_argument("--rows", type=int, default=32, help="of a request; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=60.0, help="default: %(default)g")
    parser.add_argument("--factor", type=float, default=3.0, help="default: %(default)g")
    parser.add_argument("--deadline-ms", type=float, default=1000.0, help="default: %(default)g")
    parser.add_argument("--connections", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--capacity-seconds", type=float, default=5.0, help="default: %(default)g")
    parser.add_argument(
        "--server-flag", action="append", default=[], metavar="FLAG", help="of ours; repeatable"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
