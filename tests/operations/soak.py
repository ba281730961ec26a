"""Keeps a server busy with everything at once, and measures whether it grows.

bazel run //tests/operations:soak -- --minutes 10
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from slipway.proto import open_inference_pb2 as protocol
from slipway.tests.operations.load import (
    INFER,
    Load,
    affine_request,
    echo_request,
    infer,
    open_channel,
    power_request,
)
from slipway.tests.operations.repository_changes import changes
from slipway.tests.operations.scene import Scene, descriptors, memory, running

__all__ = ["Soak", "soak"]

_MIB = 2**20
_SAMPLE_SECONDS = 0.5

_WARM_UP = 0.3
"""The share of the time in which the server may still grow: pools fill, arenas spread."""

_NOISE = 0.02
"""The share of the memory by which it may differ between two moments of a server that does not
grow: the allocator keeps more or fewer pages."""

_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


@dataclass(frozen=True, slots=True)
class Soak:
    """What was measured.

    Attributes:
      requests: answered as they should be.
      refusals: requests that were refused, as they should be.
      failed: requests that went otherwise.
      changes: of the repository.
      memory: resident bytes after the warm-up, in the order of time.
      seconds: for how long these were taken.
      descriptors: at the end of the warm-up and at the end, without clients.
      threads: at these two moments.
    """

    requests: int
    refusals: int
    failed: int
    changes: int
    memory: list[int]
    seconds: float
    descriptors: tuple[int, int]
    threads: tuple[int, int]

    @property
    def growth(self) -> float:
        """Returns by how many bytes memory grew, by the line that fits best."""
        times = range(len(self.memory))
        slope = statistics.linear_regression(times, self.memory).slope
        return slope * (len(self.memory) - 1)

    @property
    def noise(self) -> float:
        """Returns how many bytes of growth mean nothing."""
        times = range(len(self.memory))
        slope, start = statistics.linear_regression(times, self.memory)
        rest = [value - start - slope * moment for moment, value in enumerate(self.memory)]
        return max(3 * statistics.pstdev(rest), _NOISE * statistics.mean(self.memory))

    @property
    def problems(self) -> list[str]:
        """Returns what is wrong; empty if nothing is."""
        found = []
        if self.failed:
            found.append(f"{self.failed} requests failed")
        if self.growth > self.noise:
            found.append("memory grows")
        if self.descriptors[1] > self.descriptors[0] + 4:
            found.append("descriptors leak")
        if self.threads[1] > self.threads[0] + 4:
            found.append("threads leak")
        return found

    @property
    def line(self) -> str:
        """Returns the figures in one line."""
        growth, hours = self.growth / _MIB, self.seconds / 3600
        return (
            f"soak: {self.requests} answered, {self.refusals} refused, {self.failed} failed, "
            f"{self.changes} changes; memory {statistics.mean(self.memory) / _MIB:.0f} MiB "
            f"{growth:+.1f} MiB in {self.seconds:.0f} s (noise {self.noise / _MIB:.1f} MiB, slope "
            f"{growth / hours:+.0f} MiB/h); descriptors {self.descriptors[0]} -> "
            f"{self.descriptors[1]}, threads {self.threads[0]} -> {self.threads[1]}"
        )


def soak(folder: Path, seconds: float) -> Soak:
    """Keeps a server busy for so long. Raises: AssertionError if it ends otherwise than it should.

    Args:
      folder: empty.
      seconds: how long, of which the first part is warm-up.
    """
    flags = ("--model-control=poll", "--poll-seconds=0.2", "--version-policy=latest:2")
    with running(folder, *flags, "--log-level=error") as scene:
        counts: Counter[str] = Counter()
        made = changes(scene.root, scene.control)
        _busy(scene, made, seconds * _WARM_UP, counts, [])
        before = _at_rest(scene)
        samples: list[int] = []
        started = time.monotonic()
        _busy(scene, made, seconds * (1 - _WARM_UP), counts, samples)
        measured = time.monotonic() - started
        after = _at_rest(scene)
        scene.probe()
        code = scene.server.stop()
    assert code == 0, f"the server ended with exit code {code}"
    return Soak(
        counts["answered"],
        counts["refused"],
        counts["failed"],
        counts["changes"],
        samples,
        measured,
        (before[0], after[0]),
        (before[1], after[1]),
    )


def _at_rest(scene: Scene) -> tuple[int, int]:
    """Returns the descriptors and threads of a server once its clients have gone."""
    best = (sys.maxsize, sys.maxsize)
    for _ in range(20):
        time.sleep(0.2)
        threads = len(list(Path(f"/proc/{scene.pid}/task").iterdir()))
        best = min(best, (descriptors(scene.pid), threads))
    return best


def _busy(
    scene: Scene, made: Iterator[str], seconds: float, counts: Counter[str], samples: list[int]
) -> None:
    """Keeps the server busy, changes its repository, and adds to `counts` and `samples`."""
    end = time.monotonic() + seconds
    load = Load(scene.address, clients=2)
    mixed = [
        threading.Thread(target=_mix, args=(scene.address, seed, end, counts), name="mix")
        for seed in range(2)
    ]
    changer = threading.Thread(target=_change, args=(made, end, counts), name="changes")
    with load:
        for thread in (*mixed, changer):
            thread.start()
        while time.monotonic() < end:
            samples.append(memory(scene.pid))
            time.sleep(_SAMPLE_SECONDS)
        for thread in (*mixed, changer):
            thread.join()
    counts["answered"] += load.answered
    counts["failed"] += load.asked - load.answered
    if load.asked != load.answered:
        print(load.summary(), file=sys.stderr)


def _change(made: Iterator[str], end: float, counts: Counter[str]) -> None:
    while time.monotonic() < end:
        next(made)
        counts["changes"] += 1
        time.sleep(0.2)


def _mix(address: str, seed: int, end: float, counts: Counter[str]) -> None:
    """Asks for everything that there is to ask for."""
    chance = random.Random(seed)
    while time.monotonic() < end:
        # Each round has a connection of its own.
        with open_channel(address) as channel:
            for _ in range(20):
                _ask(channel, chance, counts)


def _ask(channel: grpc.Channel, chance: random.Random, counts: Counter[str]) -> None:
    kind = chance.randrange(6)
    if kind == 0:
        size = 4 * chance.randrange(_MIB // 2)
        response = infer(channel, echo_request(size))
        counts["answered" if sum(map(len, response.raw_output_contents)) == size else "failed"] += 1
    elif kind == 1:
        infer(channel, power_request(chance.randrange(1, 200)))
        counts["answered"] += 1
    elif kind == 2:
        call = channel.unary_unary(INFER).future(power_request(300).SerializeToString())
        time.sleep(chance.random() / 100)
        call.cancel()
        counts["answered"] += 1
    elif kind == 3:
        requests = [affine_request(f"stream {i}").SerializeToString() for i in range(20)]
        responses = channel.stream_stream(_STREAM)(iter(requests), timeout=120)
        counts["answered"] += sum(1 for _ in responses)
    else:
        counts["refused" if _is_refused(channel, _wrong(chance)) else "failed"] += 1


def _wrong(chance: random.Random) -> protocol.ModelInferRequest:
    """Returns a request that is refused, each with another text."""
    request = affine_request(str(chance.random()), rows=chance.randrange(9, 1000))
    if chance.random() < 0.5:
        request.model_name = f"model {chance.random()}"
    return request


def _is_refused(channel: grpc.Channel, request: protocol.ModelInferRequest) -> bool:
    try:
        infer(channel, request)
    except grpc.RpcError as error:
        return error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), options.minutes * 60)
    for problem in result.problems:
        print(problem)
    print(result.line)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
