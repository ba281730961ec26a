from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from slipway.program import load
from slipway.serving.devices import make_device, resolve_device
from slipway.serving.errors import StartupError
from slipway.serving.processors import Processors
from slipway.tests.serving.programs import write_affine

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def test_cpu_is_the_processor() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


@without_cuda
def test_auto_falls_back_to_the_processor() -> None:
    assert resolve_device("auto") == torch.device("cpu")


@without_cuda
@pytest.mark.parametrize("text", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_that_is_not_there_is_an_error(text: str) -> None:
    with pytest.raises(StartupError, match=f"--device is {text}, but") as caught:
        resolve_device(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:-1", "cuda:01", "cuda:x", "CPU"])
def test_other_forms_are_errors_that_name_the_forms(text: str) -> None:
    with pytest.raises(StartupError, match="it must be cpu, cuda:N with N from 0, or auto"):
        resolve_device(text)


@with_cuda
def test_cuda_devices_are_counted() -> None:
    count = torch.cuda.device_count()
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device(f"cuda:{count - 1}") == torch.device("cuda", count - 1)
    with pytest.raises(StartupError, match=f"cuda:0 to cuda:{count - 1}"):
        resolve_device(f"cuda:{count}")


@pytest.mark.parametrize(
    "place",
    [
        "cpu",
        pytest.param(
            "cuda:0", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
        ),
    ],
)
def test_a_device_runs_programs_from_several_threads(place: str, tmp_path: Path) -> None:
    device = make_device(resolve_device(place), Processors(2))
    before = device.allocated_memory()
    write_affine(tmp_path / "program")
    program = device.prepare(lambda: load(tmp_path / "program", device.torch_device))
    method = program.methods["forward"]

    def run(value: int) -> torch.Tensor:
        (output,), seconds = device.run(method, [torch.full((2, 4), float(value))])
        assert seconds >= 0
        return output

    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(run, range(200)))
    for value, output in enumerate(outputs):
        assert output.device.type == "cpu"
        assert output.tolist() == [[value * 6, value * 22, value * 38]] * 2
    assert device.allocated_memory() >= before
    assert device.available_memory() > 0
