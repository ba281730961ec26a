from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast

import pytest
import torch

from slipway.program import Method
from slipway.serving.errors import (
    CancelledError,
    DeviceError,
    InternalError,
    InvalidRequestError,
    ResourceExhaustedError,
    ServingError,
)
from slipway.serving.instance import Instance


class FakeMethod:
    """Runs whatever it is given, and remembers how many calls ran at once."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls = self.running = self.most_running = 0

    def run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.calls += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if self.error is not None:
            raise self.error
        assert torch.is_inference_mode_enabled()
        results = [tensor @ tensor for tensor in tensors]
        self.running -= 1
        return results


def instance_of(method: FakeMethod) -> Instance:
    return Instance("model 'm' version 1", cast(Method, method), torch.device("cpu"))


def test_outputs_come_in_order() -> None:
    one, two = instance_of(FakeMethod()).run([torch.eye(2), torch.eye(3)])
    assert one.shape == (2, 2)
    assert two.shape == (3, 3)


def test_calls_run_one_at_a_time() -> None:
    method = FakeMethod()
    instance = instance_of(method)
    matrix = torch.rand(200, 200)
    threads = [threading.Thread(target=instance.run, args=([matrix],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert method.calls == 8
    assert method.most_running == 1


def test_a_call_that_nobody_waits_for_is_not_run() -> None:
    method = FakeMethod()
    with pytest.raises(CancelledError):
        instance_of(method).run([torch.eye(2)], lambda: False)
    assert method.calls == 0


def failure_of(action: str) -> Exception:
    """Returns what torch itself raises."""
    try:
        match action:
            case "embedding":
                torch.nn.functional.embedding(torch.tensor([5]), torch.zeros(2, 3))
            case "index":
                torch.zeros(4)[torch.tensor([7])]
            case "gather":
                torch.gather(torch.zeros(4), 0, torch.tensor([7]))
            case "memory":
                torch.empty(2**45)
            case _:
                torch.zeros(2) @ torch.zeros(3)
    except Exception as error:
        return error
    raise AssertionError(f"{action} did not fail")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (failure_of("embedding"), InvalidRequestError),
        (failure_of("index"), InvalidRequestError),
        (failure_of("gather"), InvalidRequestError),
        (failure_of("memory"), ResourceExhaustedError),
        (torch.OutOfMemoryError("CUDA out of memory"), ResourceExhaustedError),
        (MemoryError(), ResourceExhaustedError),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), DeviceError),
        (RuntimeError("/secret/path: the model broke"), InternalError),
        (failure_of("shapes"), InternalError),
    ],
    ids=str,
)
def test_failures_get_a_status_and_tell_no_internals(
    error: Exception, expected: type[ServingError]
) -> None:
    with pytest.raises(ServingError) as caught:
        instance_of(FakeMethod(error)).run([])
    assert type(caught.value) is expected
    assert str(caught.value).startswith("model 'm' version 1 ")
    assert "secret" not in str(caught.value)
