from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from slipway.program import DataViolation, Method, load
from slipway.program.interpreter import use_interpreter
from slipway.serving.cuda import Cuda
from slipway.tests.serving.programs import write_affine, write_checked, write_lookup

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

_PLACE = torch.device("cuda", 0)
_RECORDED = "has a CUDA graph"


def make_method(device: Cuda, write: Callable[[Path], None], directory: Path) -> Method:
    write(directory)
    program = device.prepare(lambda: load(directory, _PLACE))
    use_interpreter(program)
    return program.methods["forward"]


def test_graphs_give_what_calls_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    device = Cuda(_PLACE, 2**30)
    method = make_method(device, write_affine, tmp_path)
    for value in range(12):
        for count in (1, 3):
            (output,), _ = device.run(method, [torch.full((count, 4), float(value))])
            assert output.tolist() == [[value * 6, value * 22, value * 38]] * count
    assert sum(_RECORDED in line for line in caplog.messages) == 2


@pytest.mark.parametrize("threads", [4, 40])  # torch has 32 streams for them
def test_several_threads_record_and_launch(tmp_path: Path, threads: int) -> None:
    device = Cuda(_PLACE, 2**30)
    affine = make_method(device, write_affine, tmp_path / "affine")
    lookup = make_method(device, write_lookup, tmp_path / "lookup")

    def run(value: int) -> None:
        count = value % 3 + 1
        (output,), _ = device.run(affine, [torch.full((count, 4), float(value))])
        assert output.tolist() == [[value * 6, value * 22, value * 38]] * count
        tokens = torch.full((count, 5), value % 3)
        mask = torch.ones(count, 5, dtype=torch.bool)
        (embedded, _), _ = device.run(lookup, [tokens, mask])
        expected = [2.0 * (value % 3), 2.0 * (value % 3) + 1]
        assert embedded.tolist() == [[expected] * 5] * count

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(100 * threads)))


def test_an_index_out_of_range_leaves_the_device_of_use(tmp_path: Path) -> None:
    device = Cuda(_PLACE, 2**30)
    method = make_method(device, write_lookup, tmp_path)
    mask = torch.ones(1, 5, dtype=torch.bool)
    for _ in range(8):
        with pytest.raises(DataViolation, match="outside the vocabulary"):
            device.run(method, [torch.full((1, 5), 3), mask])
        (embedded, _), _ = device.run(method, [torch.ones(1, 5, dtype=torch.int64), mask])
        assert embedded.tolist() == [[[2.0, 3.0]] * 5]


def test_nothing_is_recorded_without_memory_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    device = Cuda(_PLACE)
    method = make_method(device, write_affine, tmp_path)
    for _ in range(10):
        device.run(method, [torch.ones(2, 4)])
    assert not any(_RECORDED in line for line in caplog.messages)


def test_the_bound_holds_until_a_program_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    device = Cuda(_PLACE, 1)  # one graph, since that takes more
    for name in ("one", "two"):
        method = make_method(device, write_affine, tmp_path / name)
        for count in (1, 2):
            for _ in range(6):
                device.run(method, [torch.ones(count, 4)])
        assert sum(_RECORDED in line for line in caplog.messages) == 1
        caplog.clear()
        del method
        gc.collect()


def test_what_looks_at_values_is_run_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    device = Cuda(_PLACE, 2**30)
    method = make_method(device, write_checked, tmp_path)
    for value in range(8):
        (output,), _ = device.run(method, [torch.full((2, 4), float(value))])
        assert output.tolist() == [[-float(value)] * 4] * 2
    with pytest.raises(DataViolation, match="the sum is negative"):
        device.run(method, [torch.full((2, 4), -1.0)])
    assert sum("runs without CUDA graphs" in line for line in caplog.messages) == 1
    assert not any(_RECORDED in line for line in caplog.messages)
