from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch

from slipway.program import DataViolation, Method, load
from slipway.program.interpreter import use_interpreter
from slipway.serving.errors import (
    DeviceError,
    InternalError,
    InvalidRequestError,
    ResourceExhaustedError,
    ServingError,
)
from slipway.serving.host import Host
from slipway.serving.instance import Instance
from slipway.serving.processors import Processors
from slipway.tests.serving.programs import write_lookup


class FakeMethod:
    """Runs whatever it is given, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self.error is not None:
            raise self.error
        assert torch.is_inference_mode_enabled()
        return [tensor @ tensor for tensor in tensors]


def instance_of(method: FakeMethod) -> Instance:
    return Instance("model 'm' version 1", cast(Method, method), Host(Processors(1)))


def test_outputs_come_in_order() -> None:
    (one, two), _ = instance_of(FakeMethod()).run([torch.eye(2), torch.eye(3)])
    assert one.shape == (2, 2)
    assert two.shape == (3, 3)


class GreedyMethod(FakeMethod):
    """Runs out of memory when it has computed something.

    Attributes:
      computed: what that is, if it is still there.
    """

    computed: Callable[[], torch.Tensor | None]

    def run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        result = torch.zeros(4)
        self.computed = weakref.ref(result)
        try:
            raise RuntimeError("CUDA out of memory, says the interpreter")
        except RuntimeError:
            raise torch.OutOfMemoryError("CUDA out of memory")  # noqa: B904


def test_what_ran_out_of_memory_keeps_none() -> None:
    method = GreedyMethod()
    # As while the requests of the batch are run one by one.
    with pytest.raises(ResourceExhaustedError) as caught:
        instance_of(method).run([])
    assert caught.value.__cause__ is not None
    assert method.computed() is None


def cuda_failure(code: int, text: str) -> Exception:
    """Returns what torch raises for an error of CUDA's."""
    error = torch.AcceleratorError(f"CUDA error: {text}")
    error.error_code = code  # type: ignore[attr-defined]
    return error


def failure_of(action: str) -> Exception:
    """Returns what torch itself raises."""
    try:
        match action:
            case "embedding":
                torch.nn.functional.embedding(torch.tensor([5]), torch.zeros(2, 3))
            case "embedding of nothing":
                torch.nn.functional.embedding(torch.tensor([0]), torch.zeros(0, 3))
            case "bag":
                torch.nn.functional.embedding_bag(torch.tensor([[5]]), torch.zeros(2, 3))
            case "bag before others":
                torch.nn.functional.embedding_bag(
                    torch.tensor([1, 20, 3]), torch.rand(10, 4), torch.tensor([0, 1]), mode="sum"
                )
            case "largest of a bag":
                torch.nn.functional.embedding_bag(
                    torch.tensor([[5]]), torch.zeros(2, 3), mode="max"
                )
            case "first offset":
                torch.nn.functional.embedding_bag(
                    torch.tensor([1]), torch.zeros(2, 3), torch.tensor([1])
                )
            case "last offset":
                torch.nn.functional.embedding_bag(
                    torch.tensor([1]), torch.zeros(2, 3), torch.tensor([0, 7])
                )
            case "masked_scatter":
                torch.zeros(4).masked_scatter(torch.ones(4, dtype=torch.bool), torch.zeros(3))
            case "index of nothing":
                torch.zeros(0)[torch.tensor([0])]
            case "take of nothing":
                torch.take(torch.zeros(0), torch.tensor([0]))
            case "index":
                torch.zeros(4)[torch.tensor([7])]
            case "gather":
                torch.gather(torch.zeros(4), 0, torch.tensor([7]))
            case "take":
                torch.take(torch.zeros(4), torch.tensor([7]))
            case "class":
                torch.nn.functional.one_hot(torch.tensor([7]), 4)
            case "negative class":
                torch.nn.functional.one_hot(torch.tensor([-1]), 4)
            case "target":
                torch.nn.functional.cross_entropy(torch.zeros(1, 4), torch.tensor([7]))
            case "target of a margin":
                torch.nn.functional.multi_margin_loss(torch.zeros(1, 4), torch.tensor([7]))
            case "targets of a margin":
                torch.nn.functional.multilabel_margin_loss(torch.zeros(1), torch.tensor([7]))
            case "place in a window":
                torch.nn.functional.max_unpool2d(
                    torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 7), 2
                )
            case "length":
                torch.segment_reduce(torch.zeros(4), "sum", lengths=torch.tensor([-1, 5]))
            case "lengths":
                torch.segment_reduce(torch.zeros(4), "sum", lengths=torch.tensor([1, 2]))
            case "repeats":
                torch.repeat_interleave(torch.zeros(1), torch.tensor([-1]))
            case "count":
                torch.bincount(torch.tensor([-1]))
            case "sorter":
                torch.searchsorted(torch.zeros(1), torch.zeros(1), sorter=torch.tensor([7]))
            case "division by 0":
                torch.tensor([1]) // torch.tensor([0])
            case "remainder by 0":
                torch.tensor([1]) % torch.tensor([0])
            case "singular matrix":
                torch.linalg.inv(torch.zeros(2, 2))
            case "matrix that is not positive":
                torch.linalg.cholesky(-torch.eye(2))
            case "matrix of nothing finite":
                torch.linalg.eig(torch.full((2, 2), math.nan))
            case "weights that sum to 0":
                torch.multinomial(torch.zeros(3), 1)
            case "negative weights":
                torch.multinomial(-torch.ones(3), 1)
            case "probability":
                torch.bernoulli(torch.tensor([2.0]))
            case "deviation":
                torch.normal(torch.zeros(1), torch.tensor([-1.0]))
            case "rate":
                torch.poisson(torch.tensor([-1.0]))
            case "predicted probability":
                torch.nn.functional.binary_cross_entropy(torch.tensor([2.0]), torch.zeros(1))
            case "quantile":
                torch.quantile(torch.ones(3), torch.tensor([2.0]))
            case "histogram of nothing finite":
                torch.histc(torch.tensor([math.nan]))
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
        (failure_of("take"), InvalidRequestError),
        (failure_of("embedding of nothing"), InvalidRequestError),
        (failure_of("bag"), InvalidRequestError),
        (failure_of("bag before others"), InvalidRequestError),
        (failure_of("largest of a bag"), InvalidRequestError),
        (failure_of("first offset"), InvalidRequestError),
        (failure_of("last offset"), InvalidRequestError),
        (failure_of("masked_scatter"), InvalidRequestError),
        (failure_of("index of nothing"), InvalidRequestError),
        (failure_of("take of nothing"), InvalidRequestError),
        (failure_of("class"), InvalidRequestError),
        (failure_of("negative class"), InvalidRequestError),
        (failure_of("target"), InvalidRequestError),
        (failure_of("target of a margin"), InvalidRequestError),
        (failure_of("targets of a margin"), InvalidRequestError),
        (failure_of("place in a window"), InvalidRequestError),
        (failure_of("length"), InvalidRequestError),
        (failure_of("lengths"), InvalidRequestError),
        (failure_of("repeats"), InvalidRequestError),
        (failure_of("count"), InvalidRequestError),
        (failure_of("sorter"), InvalidRequestError),
        (failure_of("division by 0"), InvalidRequestError),
        (failure_of("remainder by 0"), InvalidRequestError),
        (failure_of("singular matrix"), InvalidRequestError),
        (failure_of("matrix that is not positive"), InvalidRequestError),
        (failure_of("matrix of nothing finite"), InvalidRequestError),
        (failure_of("weights that sum to 0"), InvalidRequestError),
        (failure_of("negative weights"), InvalidRequestError),
        (failure_of("probability"), InvalidRequestError),
        (failure_of("deviation"), InvalidRequestError),
        (failure_of("rate"), InvalidRequestError),
        (failure_of("predicted probability"), InvalidRequestError),
        (failure_of("quantile"), InvalidRequestError),
        (failure_of("histogram of nothing finite"), InvalidRequestError),
        (failure_of("memory"), ResourceExhaustedError),
        (torch.OutOfMemoryError("CUDA out of memory"), ResourceExhaustedError),
        (MemoryError(), ResourceExhaustedError),
        (cuda_failure(2, "out of memory"), ResourceExhaustedError),
        (cuda_failure(9, "invalid configuration argument"), InternalError),
        (cuda_failure(710, "device-side assert triggered"), DeviceError),
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


@pytest.mark.parametrize("is_interpreted", [False, True])
def test_an_index_out_of_range_is_found_by_programs_that_check(
    tmp_path: Path, is_interpreted: bool
) -> None:
    write_lookup(tmp_path)
    program = load(tmp_path, checks_indices=True)
    if is_interpreted:
        assert not use_interpreter(program)
    method = program.methods["forward"]
    instance = Instance("model 'm' version 1", method, Host(Processors(1)))
    tokens, mask = torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool)
    (embedded, kept), _ = instance.run([tokens, mask])
    assert embedded.tolist() == [[[0.0, 1.0], [4.0, 5.0]]]
    assert kept.tolist() == [[False, False]]
    for wrong in (-1, 3):
        tokens[0, 1] = wrong
        with pytest.raises(InvalidRequestError, match="refused the request: a value of an input"):
            instance.run([tokens, mask])
        with pytest.raises(DataViolation, match="outside the vocabulary"):
            program(tokens, mask)
        # Nothing fails on the way, which on a device would be for good.
        results = method.start([tokens, mask])
        with pytest.raises(DataViolation):
            method.finish(results)
