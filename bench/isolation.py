"""Whether a caller whose requests are wrong harms those whose requests are right.

    bazel run //bench:isolation

For each example program, 16 callers send good requests, one after the other, while one more sends
requests that break the contract, are no request at all, or make the model fail. Every good answer
is compared with the program's; every bad request must be refused with INVALID_ARGUMENT.

Prints `isolation: G good, 0 failed, B bad refused` for each program and ends with the line for all.
Exits 1 if a good request failed or a bad one was not refused.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np

from slipway.bench.http2_client import framed
from slipway.bench.load_generator import Caller, Request, Target, closed_loop
from slipway.bench.server_process import compute_worker, slipway_server
from slipway.bench.subjects import (
    INFER,
    SUBJECTS,
    Arrays,
    expected_outputs,
    infer_message,
    inputs,
    refused,
    requests,
)

_GOOD_CALLERS = 16


def main() -> int:
    options = _parse()
    with compute_worker(threads=1) as worker:
        expected = {name: expected_outputs(worker, name) for name in SUBJECTS}
    total: Counter[str] = Counter()
    with slipway_server(options.server_flag) as server:
        target = Target(server.address, INFER)
        for name in SUBJECTS:
            good = requests(name, inputs(name), expected[name])
            bad = [Request(framed(message), refused) for message in _bad_messages(name)]
            good_callers = [
                Caller(target, good[number % len(good) :] + good[: number % len(good)])
                for number in range(_GOOD_CALLERS)
            ]
            bad_caller = Caller(target, bad)
            closed_loop([*good_callers, bad_caller], options.seconds, warm_up=0)
            wrong = sum((caller.wrong for caller in good_callers), Counter[str]())
            found = Counter(
                good=sum(len(caller.latencies) for caller in good_callers),
                failed=wrong.total(),
                refused=len(bad_caller.latencies),
                accepted=bad_caller.wrong.total(),
            )
            total += found
            print(f"{name}: {_line(found)}", flush=True)
            for text, count in (wrong + bad_caller.wrong).most_common(5):
                print(f"  {count} times {text}")
    print(_line(total))
    return 1 if total["failed"] or total["accepted"] or not total["refused"] else 0


def _line(found: Counter[str]) -> str:
    line = f"isolation: {found['good']} good, {found['failed']} failed, "
    line += f"{found['refused']} bad refused"
    return line + (f", {found['accepted']} bad NOT refused" if found["accepted"] else "")


def _bad_messages(subject: str) -> Iterator[bytes]:
    """Yields requests that break the subject's contract, or that its model cannot compute."""
    legal = inputs(subject)[0]
    yield infer_message(subject, legal)[:-1]  # cut short
    yield b"\xff" * 64  # no message
    yield infer_message(subject, {f"no_{name}": array for name, array in legal.items()})
    yield infer_message(subject, {name: array[0] for name, array in legal.items()})  # ranks
    yield infer_message(subject, dict(list(legal.items())[:-1]))  # an input less
    for arrays in _bad_arrays(subject):
        yield infer_message(subject, arrays)


def _bad_arrays(subject: str) -> Iterator[Arrays]:
    def floats(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.zeros(shape, np.float32)

    def sequence(tokens: list[int], length: int | None = None) -> Arrays:
        mask = np.ones((1, len(tokens) if length is None else length), np.bool_)
        return {"tokens": np.array([tokens], np.int64), "mask": mask}

    if subject == "mlp":
        yield {"features": floats(1, 255)}
        yield {"features": floats(65, 256)}  # beyond the largest batch
        yield {"features": floats(0, 256)}
        yield {"features": np.zeros((1, 256), np.int64)}
    elif subject == "resnet":
        yield {"image": floats(1, 3, 225, 224)}  # no multiple of 32
        yield {"image": floats(1, 4, 224, 224)}
        yield {"image": floats(1, 3, 288, 32)}  # beyond the most rows
        yield {"image": floats(17, 3, 32, 32)}
    else:
        yield sequence([1] * 129)  # longer than the longest
        yield sequence([1] * 16, length=17)  # tokens and mask disagree
        # Legal by shape, and of lengths that good requests have: these reach the model, which has
        # no such token, and fail there.
        for length in (16, 64, 128, 64):
            yield sequence([1000] * length)
            yield sequence([5] * (length - 1) + [-1])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="isolation", description="Good callers beside a bad one.")
    parser.add_argument("--seconds", type=float, default=10.0, help="each program; default: 10")
    parser.add_argument(
        "--server-flag", action="append", default=[], metavar="FLAG", help="of ours; repeatable"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
