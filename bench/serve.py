"""The server under load, beside what limits it and beside other servers.

    bazel run //bench:serve -- --quick
    bazel run //bench:serve -- --peers DIR

Measures, in turn and over again, the three example programs at 1, 8 and 32 connections with one
request each in flight: our server; a bare gRPC echo in Python, which answers as many bytes and does
nothing else (the limit of the wire); the same programs called in a process without a server (the
limit of the computation); and with --peers other servers that bench/peer_servers/set_up.py
installed. The figures are medians over the rounds. Every answer of every server is compared with
the program's.

Ends with one JSON object: {MODEL: {CONNECTIONS: {"rps", "p50_ms", "p99_ms", "of_wire",
"of_compute"}}}. of_wire is rps divided by the echo's. of_compute is rps divided by the rows a
second of calls in process on as many threads, by one caller with all of them or one on each,
whichever is faster: of the best batch of up to CONNECTIONS rows where the server batches, else of
one row.

Without --quick it measures longer, takes latency against load too, and writes serve.json, serve.md,
serve.png and serve.svg to docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slipway.bench import peers, serve_report
from slipway.bench.http2_client import ConnectionLost, call
from slipway.bench.load_generator import (
    Caller,
    Request,
    Target,
    closed_loop,
    open_loop,
    percentile,
)
from slipway.bench.serve_report import Figures, Load, Point
from slipway.bench.server_process import (
    ServerProcess,
    Worker,
    compute_worker,
    module_command,
    slipway_server,
)
from slipway.bench.subjects import INFER, SUBJECTS, expected_outputs, inputs, requests
from slipway.proto import open_inference_pb2 as protocol

_ECHO_THREADS = 32
_WARM_UP_SECONDS = 5.0
_FRACTIONS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1)


class System:
    """A server that is measured: for each subject a target, and requests that fit it."""

    def __init__(self, subjects: dict[str, tuple[Target, list[Request]]]) -> None:
        self.subjects = subjects

    def wait_until_ready(self) -> None:
        """Returns when every subject has been answered.

        Raises:
          RuntimeError: that took too long.
        """
        end = time.monotonic() + 60
        for target, made in self.subjects.values():
            while True:
                try:
                    call(target.address, target.path, made[0].message[5:])
                    break
                except (ConnectionLost, RuntimeError) as error:
                    if time.monotonic() > end:
                        raise RuntimeError(f"not ready: {error}") from error
                    time.sleep(0.5)

    def measure(self, subject: str, connections: int, seconds: float) -> tuple[float, ...]:
        """Returns requests a second, p50 and p99 in milliseconds, and the generator's share.

        Raises:
          RuntimeError: an answer was wrong.
        """
        target, made = self.subjects[subject]
        # Each starts elsewhere, so that they send different requests at a time.
        callers = [
            Caller(target, made[start:] + made[:start])
            for start in (number * 5 % len(made) for number in range(connections))
        ]
        load = closed_loop(callers, seconds)
        if load.wrong:
            raise RuntimeError(f"{subject} at {target.address}: {load.wrong.most_common(3)}")
        p50, p99 = (percentile(load.latencies, percent) * 1e3 for percent in (50, 99))
        return load.rate, p50, p99, load.generator_share

    def latency_at(self, subject: str, rate: float, seconds: float) -> Point:
        """Returns what an open loop finds at a rate."""
        target, made = self.subjects[subject]
        load = open_loop(target, made, rate=rate, seconds=seconds, patience=60)
        if load.wrong or load.lost:
            raise RuntimeError(
                f"{subject} at {target.address}: {load.wrong.most_common(3)}, {load.lost} lost"
            )
        good = sorted(load.good)
        p50_ms, p99_ms = (percentile(good, percent) * 1e3 for percent in (50, 99))
        return Point(rate, p50_ms, p99_ms, len(good) / load.sent)


def main() -> None:
    options = _parse()
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(compute_worker(options.threads, options.device))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        expected = {name: expected_outputs(worker, name) for name in options.models}
        server = stack.enter_context(slipway_server(options.server_flag))
        ours = System(
            {
                name: (Target(server.address, INFER), requests(name, inputs(name), expected[name]))
                for name in options.models
            }
        )
        systems = {"slipway": ours, "echo": _echo(stack, ours)}
        if options.peers:
            systems |= _peers(stack, options, worker, folder, expected)
        figures = _closed(options, systems, worker, server.address)
        load = {} if options.quick else _open(options, systems, figures)
    print(serve_report.table(figures))
    if not options.quick:
        serve_report.write(options.to, figures, load, options.threads, options.server_flag)
    print(json.dumps(serve_report.summary(figures)))


def _echo(stack: contextlib.ExitStack, ours: System) -> System:
    """Returns the echo, which answers as many bytes as ours does."""
    command = module_command("slipway.bench.echo_server", str(_ECHO_THREADS))
    address = stack.enter_context(ServerProcess(*command)).address
    subjects = {}
    for name, (target, made) in ours.subjects.items():
        size = len(call(target.address, target.path, made[0].message[5:]))
        answer = bytes(size)
        echoed = [
            Request(request.message, lambda reply, answer=answer: reply.message == answer)  # type: ignore[misc]
            for request in made
        ]
        subjects[name] = (Target(address, f"/echo/{size}"), echoed)
    return System(subjects)


def _peers(
    stack: contextlib.ExitStack,
    options: argparse.Namespace,
    worker: Worker,
    folder: Path,
    expected: dict[str, list[NDArray[np.float32]]],
) -> dict[str, System]:
    for name in options.models:
        worker.ask(script=name, to=str(folder / f"{name}.pt"))
    systems = {}
    for peer in peers.start(stack, options.peers, folder, options.threads):
        encode, decode = peer.dialect.encode, peer.dialect.decode
        system = System(
            {
                name: (
                    peer.target,
                    requests(name, inputs(name), expected[name], encode, decode),
                )
                for name in options.models
            }
        )
        try:
            system.wait_until_ready()
            for name in options.models:
                # Java compiles what has run for a while.
                system.measure(name, max(options.connections), _WARM_UP_SECONDS)
        except (ConnectionLost, RuntimeError) as error:
            print(f"{peer.name} is left out: {error}", file=sys.stderr)
        else:
            systems[peer.name] = system
    return systems


def _closed(
    options: argparse.Namespace, systems: dict[str, System], worker: Worker, address: str
) -> Figures:
    figures = Figures()
    for number in range(options.rounds):
        for subject in options.models:
            largest = _largest_batch(address, subject)
            for connections in options.connections:
                sizes = [2**power for power in range(6) if 2**power <= min(largest, connections)]
                for size, callers in itertools.product(sizes, {1, options.threads}):
                    answer = worker.ask(
                        time=subject,
                        batch=size,
                        window=connections,
                        callers=callers,
                        seconds=options.seconds / 8,
                    )
                    how = connections, size, callers
                    figures.add_compute(subject, how, answer["rate"], answer["p50_ms"])
                # Whoever was first in one round is last in the next.
                order = sorted(systems, reverse=bool(number % 2))
                for name in order:
                    try:
                        measured = systems[name].measure(subject, connections, options.seconds)
                    except (ConnectionLost, RuntimeError) as error:
                        if name in ("slipway", "echo"):
                            raise
                        print(f"{name}, {subject}, {connections}: {error}", file=sys.stderr)
                        continue
                    figures.add(subject, connections, name, number, measured)
    return figures


def _largest_batch(address: str, model: str) -> int:
    """Returns how many rows of a model's requests the server puts together, at most."""
    request = protocol.ModelConfigRequest(name=model).SerializeToString()
    response = call(address, INFER.replace("ModelInfer", "ModelConfig"), request)
    config = protocol.ModelConfigResponse.FromString(response).config
    return config.max_batch_size if config.HasField("dynamic_batching") else 1


def _open(options: argparse.Namespace, systems: dict[str, System], figures: Figures) -> Load:
    """Returns latency at fractions of what each server did at most."""
    load: Load = {}
    for subject in options.models:
        for name, system in systems.items():
            rates = [
                figures.rate(subject, number, name)
                for number in options.connections
                if (subject, number, name) in figures.rows()
            ]
            if name == "echo" or not rates:
                continue
            load.setdefault(subject, {})[name] = [
                system.latency_at(subject, fraction * max(rates), options.seconds * 2)
                for fraction in _FRACTIONS
            ]
    return load


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="serve", description="The server under load.")
    parser.add_argument("--quick", action="store_true", help="under five minutes; writes nothing")
    parser.add_argument("--rounds", type=int, help="of everything (default: 3 if quick, else 7)")
    parser.add_argument(
        "--seconds", type=float, help="of each measurement (default: 2 if quick, else 4)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count(),
        help="of the computation in process, and of peers (default: one a core, %(default)s)",
    )
    parser.add_argument(
        "--device", default="cpu", help="of our server and of the computation in process"
    )
    parser.add_argument("--models", type=_names, default=list(SUBJECTS), metavar="NAME,…")
    parser.add_argument("--connections", type=_numbers, default=[1, 8, 32], metavar="N,…")
    parser.add_argument(
        "--server-flag", action="append", default=[], metavar="FLAG", help="of ours; repeatable"
    )
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", help="where peer_servers/set_up.py installed them"
    )
    workspace = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", ""))
    parser.add_argument("--to", type=Path, default=workspace / "docs" / "benchmarks", metavar="DIR")
    options = parser.parse_args(arguments)
    if options.device != "cpu":
        options.server_flag = [*options.server_flag, f"--device={options.device}"]
    options.rounds = options.rounds or (3 if options.quick else 7)
    options.seconds = options.seconds or (2.0 if options.quick else 4.0)
    return options


def _names(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(SUBJECTS):
        raise argparse.ArgumentTypeError(f"{text} is not among {', '.join(SUBJECTS)}")
    return names


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
