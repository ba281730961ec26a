from __future__ import annotations

import pytest
import torch

from slipway.serving.devices import resolve_device
from slipway.serving.errors import StartupError

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_devices_are_counted() -> None:
    count = torch.cuda.device_count()
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device(f"cuda:{count - 1}") == torch.device("cuda", count - 1)
    with pytest.raises(StartupError, match=f"cuda:0 to cuda:{count - 1}"):
        resolve_device(f"cuda:{count}")
