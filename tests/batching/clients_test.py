"""Many clients of one server process at the same time, one of whom breaks things."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from slipway.tests.serving.clients import open_client
from slipway.tests.serving.programs import (
    AFFINE_WEIGHT,
    LOOKUP_TABLE,
    write_affine,
    write_columns,
    write_lookup,
)
from slipway.tests.serving.scheduling import affine, columns, lookup
from slipway.tests.serving.server_process import ServerProcess

GOOD_CLIENTS = 8
REQUESTS = 40
OUT_OF_TIME = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("repository")
    write_affine(root / "affine" / "1")
    write_columns(root / "columns" / "1")
    write_lookup(root / "lookup" / "1")
    return root


@pytest.fixture(params=[[], ["--instances=2", "--batch-delay-ms=2"]], ids=["default", "delay"])
def server(repository: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with ServerProcess(repository, request.param) as process:
        yield process


def good_client(address: str, number: int) -> int:
    """Makes requests to every model, and returns how many answers were its own."""
    generator = np.random.default_rng(number)
    correct = 0
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer = channel.unary_unary(INFER)
        for index in range(REQUESTS):
            value, rows = int(generator.integers(-1000, 1000)), int(generator.integers(1, 5))
            tokens = generator.integers(0, 3, (rows, int(generator.integers(1, 4))))
            y = np.full((rows, 4), value, np.float32) @ AFFINE_WEIGHT.numpy().T
            message, expected = [
                (affine(value, rows), y),
                (columns(value, rows), y.T),
                (lookup(tokens.tolist(), priority=1 + index % 5), LOOKUP_TABLE.numpy()[tokens]),
            ][index % 3]
            response = service_pb2.ModelInferResponse.FromString(infer(message, timeout=60))
            output = np.frombuffer(response.raw_output_contents[0], np.float32)
            np.testing.assert_allclose(output.reshape(expected.shape), expected, rtol=1e-5)
            assert list(response.outputs[0].shape) == list(expected.shape)
            correct += 1
    return correct


def bad_client(address: str, is_over: Callable[[], bool]) -> Counter[grpc.StatusCode]:
    """Makes requests that must fail until it is told to stop, and returns how they did."""
    failures: Counter[grpc.StatusCode] = Counter()
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer = channel.unary_unary(INFER)
        while not is_over() or not failures:
            # The first makes the model fail, and whatever batch it is in; the contract refuses the
            # second; the third may be over before its turn, and the fourth's client goes.
            for message in (lookup([[0, 9]]), affine(rows=9)):
                with pytest.raises(grpc.RpcError) as caught:
                    infer(message, timeout=60)
                failures[caught.value.code()] += 1
            try:
                infer(lookup([[1]] * 4), timeout=1e-3)
            except grpc.RpcError as error:
                assert error.code() in OUT_OF_TIME, error.details()
            infer.future(affine()).cancel()
    return failures


def test_one_callers_bad_data_fails_alone(server: ServerProcess) -> None:
    over = threading.Event()
    with ThreadPoolExecutor(GOOD_CLIENTS + 1) as pool:
        bad = pool.submit(bad_client, server.address, over.is_set)
        good = [pool.submit(good_client, server.address, n) for n in range(GOOD_CLIENTS)]
        try:
            assert [item.result() for item in good] == [REQUESTS] * GOOD_CLIENTS
        finally:
            over.set()
        failures = bad.result()
    assert failures.keys() == {grpc.StatusCode.INVALID_ARGUMENT}
    succeeded = 0
    with open_client(server.address) as client:
        until = time.monotonic() + 60
        while succeeded < GOOD_CLIENTS * REQUESTS:  # the last are counted after they were answered
            assert time.monotonic() < until, f"{succeeded} were counted"
            found = {item.name: item for item in client.get_inference_statistics().model_stats}
            succeeded = sum(item.inference_stats.success.count for item in found.values())
    failed = sum(item.inference_stats.fail.count for item in found.values())
    assert failed >= failures[grpc.StatusCode.INVALID_ARGUMENT]
    for name, maximum in (("affine", 8), ("columns", 8), ("lookup", 4)):
        assert all(batch.batch_size <= maximum for batch in found[name].batch_stats)
    assert server.stop() == 0
