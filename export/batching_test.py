"""Whether calls can be joined: found where rows are independent of each other, and only there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn import functional

from slipway.export import Dim, ExportError, ExportErrorKind, ExportSpec, MethodSpec, export
from slipway.export.api import export_spec
from slipway.export.rows import Tolerance
from slipway.program import Batching, Contract, Program, load

Function = Callable[..., Any]


def batched(f: Function, *args: torch.Tensor, **options: Any) -> Program:
    """Exports a function whose arguments' first dimensions are `batch`."""
    torch.manual_seed(0)
    shapes = tuple("batch" + ", _" * (tensor.dim() - 1) for tensor in args)
    arguments: dict[str, Any] = {"dynamic_shapes": shapes, "symbols": {"batch": (1, 32)}} | options
    return export(f, args, **arguments)


def why_not(f: Function, *args: torch.Tensor, **options: Any) -> str:
    """Returns the note that calls of a function are not joined."""
    program = batched(f, *args, **options)
    assert program.methods["forward"].batching is None
    (note,) = (note for note in program.contract.notes if "joined" in note)
    return note


class Settled(nn.Module):
    """Repeats a step until nothing changes, which of not-a-number is never."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def goes_on(values: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
            return changed.clone()

        def step(values: torch.Tensor, changed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            later = (values / 2).floor()
            return later, (later != values).any()

        return while_loop(goes_on, step, (x.floor(), torch.tensor(True)))[0]


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Layers(nn.Module):
    """Attention and normalisation of what stands in a table, for (batch, 6) indices."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.embedding(tokens)
        states, _ = self.attention(states, states, states, need_weights=False)
        return {"states": self.norm(states), "mean": states.mean(1)}


INDEPENDENT: dict[str, tuple[Function, tuple[torch.Tensor, ...]]] = {
    "pointwise": (lambda x: x.relu() * 2, (features(2, 3),)),
    "of one dimension": (lambda x: x + 1, (features(2),)),
    "an example of zeros": (lambda x: x.sum(1), (torch.zeros(2, 3),)),
    "an example of one row": (lambda x: x.cumsum(1), (features(1, 3),)),
    "softmax along a row": (lambda x: functional.softmax(x, -1), (features(2, 3),)),
    "logarithm": (lambda x: x.log(), (torch.rand(2, 3),)),
    "convolution": (
        lambda x: functional.conv2d(x, torch.ones(4, 3, 3, 3)),
        (features(2, 3, 8, 8),),
    ),
    "complex": (lambda x: torch.fft.rfft(x, dim=1), (features(2, 8),)),
    "half": (lambda x: x @ x.mT, (features(2, 8, 4).half(),)),
    "double": (lambda x: x.double() / 3, (features(2, 8),)),
    "two inputs, two outputs": (
        lambda x, y: (x[:, None] * y, y.argmax(1)),
        (features(2), features(2, 4)),
    ),
    "a mask": (
        lambda x, mask: x.masked_fill(~mask, 0).sum(1),
        (features(2, 5), torch.ones(2, 5, dtype=torch.bool)),
    ),
    "small indices": (
        lambda x: torch.ones(7).cumsum(0)[x],
        (torch.tensor([[6, 2], [3, 0]]),),
    ),
    "bytes": (lambda x: x.float() / 255, (torch.arange(8, dtype=torch.uint8).reshape(2, 4),)),
    "layers": (Layers().eval(), (torch.randint(10, (2, 6)),)),
    "a recurrent network": (nn.GRU(3, 4, batch_first=True).eval(), (features(2, 5, 3),)),
}
# A recurrent network's last state has the batch as its second dimension.
DIMENSIONS = {"a recurrent network": (0, 1)}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent_rows_can_be_joined(name: str) -> None:
    function, args = INDEPENDENT[name]
    wanted = "batch" if name in DIMENSIONS else True
    program = batched(function, *args, batching=wanted)
    batching = program.methods["forward"].batching
    assert isinstance(batching, Batching), program.contract.notes
    assert batching.symbol == "batch"
    assert list(batching.inputs.values()) == [0] * len(args)
    expected = DIMENSIONS.get(name, (0,) * len(program.contract.tensor_outputs))
    assert batching.outputs == expected
    assert batching.evidence.batch_sizes == (2, 3, 32)
    assert batching.evidence.comparisons > 30
    assert batching.evidence.perturbations >= 1
    assert not any("joined" in note for note in program.contract.notes)


def test_bags_of_any_length_are_rows() -> None:
    model = nn.EmbeddingBag(10, 3, mode="max").eval()
    symbols = {"batch": (1, 8), "items": (1, 20)}
    bags = torch.randint(10, (4, 6))
    program = export(model, bags, dynamic_shapes=("batch, items",), symbols=symbols)
    assert str(program.contract.tensor_outputs["output"]) == "float32[batch, 3]"
    assert program.methods["forward"].batching is not None
    for shape in ((1, 1), (8, 1), (1, 20), (3, 7)):
        bags = torch.randint(10, shape)
        torch.testing.assert_close(program(bags), model(bags))


class Counting(nn.Module):
    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x * 2


def gathered(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x[index]


def in_place(x: torch.Tensor) -> torch.Tensor:
    return x.add_(1)


def bounded(x: torch.Tensor) -> torch.Tensor:
    torch._assert_async(x.abs().sum() < 30)
    return x * 2


DEPENDENT: dict[str, tuple[Function, tuple[torch.Tensor, ...], str]] = {
    "softmax": (lambda x: functional.softmax(x, 0), (features(2, 3),), "is not what it is alone"),
    "mean": (lambda x: x - x.mean(0), (features(2, 3),), "is not what it is alone"),
    "mean of an example of ones": (
        lambda x: x - x.mean(0),
        (torch.ones(2, 3),),
        "is not what it is alone",
    ),
    "running sum": (lambda x: x.cumsum(0), (features(2, 3),), "is not what it is alone"),
    "reversed": (lambda x: x.flip(0), (features(2, 3),), "is not what it is alone"),
    "rolled far": (
        lambda x: x + functional.pad(x, (0, 0, 9, 0))[: x.shape[0]],
        (features(2, 3),),
        "in a batch of 32 rows is not what it is alone",
    ),
    "divided by the largest": (
        lambda x: x / x.abs().max().clamp(min=100),
        (features(2, 3),),
        "changes with the values of another row",
    ),
    "first row": (lambda x: x - x[0], (features(2, 3),), "is not what it is alone"),
    "normalised over the batch": (
        lambda x: functional.batch_norm(x, None, None, training=True),
        (features(2, 3, 5),),
        "is not what it is alone",
    ),
    "a hint of another row": (
        lambda x: x + 0 * x.sum(),
        (features(2, 3),),
        "changes with the values of another row",
    ),
    "a hint of the last row": (
        lambda x: x + 0 * x[-1],
        (features(2, 3),),
        "changes with the values of another row",
    ),
    "a bound for all rows": (
        bounded,
        (features(2, 3),),
        "a batch of 32 rows fails, whose rows alone do not",
    ),
    "a rank in the batch": (
        lambda x: x.argsort(0),
        (features(2, 3),),
        "is not what it is alone",
    ),
    "indices of rows": (
        gathered,
        (features(2, 3), torch.tensor([0, 0])),
        "is not what it is alone",
    ),
    "a branch on all rows": (
        lambda x: torch.cond(x.sum() > 1000, lambda x: x + 1, lambda x: x * 2, (x,)),
        (features(2, 3),),
        "changes with the values of another row",
    ),
    "random, in a branch": (
        lambda x: torch.cond(
            x.sum() > 1e9, lambda x: x + torch.rand_like(x), lambda x: x * 2, (x,)
        ),
        (features(2, 3),),
        "draws random numbers",
    ),
    "state": (Counting(), (features(2, 3),), "change the state of the program: calls"),
    "an argument changed": (in_place, (features(2, 3),), "change their own arguments"),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_dependent_rows_are_not_joined(name: str) -> None:
    function, args, reason = DEPENDENT[name]
    note = why_not(function, *args)
    assert note.startswith("calls are not joined over 'batch': ")
    assert re.search(reason, note), note


def test_other_shapes_than_rows_are_not_joined() -> None:
    assert batched(lambda x: x.sum(0), features(2, 3)).contract.notes == ()
    pairs = batched(lambda x: x @ x.T, features(2, 3))
    assert pairs.methods["forward"].batching is None
    shared = export(
        lambda x, scale: x * scale,
        (features(2, 3), features(3)),
        dynamic_shapes=("batch, _", "_"),
    )
    assert shared.methods["forward"].batching is None
    static = export(lambda x: x * 2, (features(2, 3),))
    assert static.methods["forward"].batching is None
    tied = batched(lambda x: x * 2, features(4, 3), relations=["batch % 4 == 0"])
    assert "the relation batch % 4 == 0 depends on it" in " ".join(tied.contract.notes)
    least = batched(lambda x: x * 2, features(4, 3), symbols={"batch": (2, 8)})
    assert "a call of one row must be legal" in " ".join(least.contract.notes)


def test_an_example_of_no_rows_shows_as_much_as_another() -> None:
    options = {"symbols": {"batch": (0, 8)}}
    batching = batched(lambda x: x * 2, torch.zeros(0, 3), **options).methods["forward"].batching
    assert batching is not None and batching.evidence.batch_sizes == (2, 3, 8)
    assert "is not what it is alone" in why_not(lambda x: x.cumsum(0), torch.zeros(0, 3), **options)


def test_an_example_without_elements_shows_nothing() -> None:
    assert "the example is empty" in why_not(lambda x: x * 2, torch.zeros(2, 0))


def test_a_spec_forbids_it() -> None:
    program = batched(lambda x: x * 2, features(2, 3), batching=False)
    assert program.methods["forward"].batching is None
    assert program.contract.notes == ()


def test_a_spec_names_the_symbol_along_whichever_dimension() -> None:
    def summed(x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(0).relu()

    options = {
        "dynamic_shapes": ("steps, batch, _",),
        "symbols": {"batch": (1, 8), "steps": (1, 9)},
    }
    named = batched(summed, features(5, 2, 3), batching="batch", **options)
    batching = named.methods["forward"].batching
    assert batching is not None
    assert (batching.inputs, batching.outputs) == ({"x": 1}, (1,))
    assert batching.evidence.settings == 3
    # What is the first dimension is not what rows are independent along.
    assert "joined over 'steps': row" in why_not(summed, features(5, 2, 3), **options)
    with pytest.raises(ExportError, match="cannot be joined over 'steps': row"):
        batched(summed, features(5, 2, 3), batching="steps", **options)


def test_a_named_symbol_that_does_not_do_is_an_error() -> None:
    for name, reason in {
        "batch": "cannot be joined over 'batch': row . of output 'output' in a batch of 2 rows",
        "rows": "is no symbol of the contract",
    }.items():
        with pytest.raises(ExportError, match=reason) as caught:
            batched(lambda x: x - x.mean(0), features(2, 3), batching=name)
        assert caught.value.kind is ExportErrorKind.INVALID_SPEC


def test_a_tolerance_is_kept_and_decides() -> None:
    def nearly(x: torch.Tensor) -> torch.Tensor:
        return x + 0.01 * (x - x.mean(0)).clamp(-1, 1).nan_to_num(0)

    assert "row" in why_not(nearly, features(2, 3))
    program = batched(nearly, features(2, 3), batching_tolerance=(0.1, 0.5))
    batching = program.methods["forward"].batching
    assert batching is not None
    assert (batching.atol, batching.rtol) == (0.1, 0.5)


def test_tolerances_are_those_of_the_least_precise_dtype() -> None:
    def tolerance(tensor: torch.Tensor) -> tuple[float, float]:
        batching = batched(lambda x: (x * 2).to(torch.float32), tensor).methods["forward"].batching
        assert batching is not None
        return batching.atol, batching.rtol

    assert tolerance(features(2, 3)) == (1e-5, 1e-4)
    assert tolerance(features(2, 3).bfloat16()) == (2e-2, 2e-2)
    assert tolerance(torch.arange(6).reshape(2, 3)) == (1e-5, 1e-4)


def test_rows_differ_beyond_the_tolerance_alone() -> None:
    tolerance = Tolerance(atol=1e-3, rtol=1e-2)
    expected = torch.tensor([[100.0, 0.0], [1.0, float("nan")], [float("inf"), 0.0]])
    near = expected + torch.tensor([[0.0, 0.9], [0.01, 0.0], [0.0, 0.0005]])
    far = expected + torch.tensor([[0.0, 1.1], [0.0, 0.0], [0.0, 0.002]])
    assert tolerance.differing_rows(near, expected, 0) == []
    assert tolerance.differing_rows(far, expected, 0) == [0, 2]
    assert tolerance.differing_rows(far.T, expected.T, 1) == [0, 2]
    numbers = torch.tensor([1, 2**53, 3])
    assert tolerance.differing_rows(numbers + torch.tensor([0, 1, 0]), numbers, 0) == [1]


def test_methods_have_their_own() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        def centred(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0)

    batch = Dim("batch", min=1, max=8)
    shapes = {"x": {0: batch}}
    program = export_spec(
        ExportSpec(
            model=Model(),
            methods={
                "forward": MethodSpec(args=features(2, 3), dynamic_shapes=shapes),
                "centred": MethodSpec(args=features(2, 3), dynamic_shapes=shapes),
            },
        )
    )
    assert program.methods["forward"].batching is not None
    assert program.methods["centred"].batching is None


def test_it_is_the_same_every_time_and_is_read_again(tmp_path: Path) -> None:
    programs = [batched(Layers().eval(), torch.randint(10, (2, 6))) for _ in range(2)]
    contracts: list[Contract] = [program.contract for program in programs]
    assert contracts[0].batching is not None
    assert contracts[0].batching == contracts[1].batching
    programs[0].save(tmp_path / "layers.program")
    assert load(tmp_path / "layers.program").methods["forward"].batching == contracts[0].batching


def test_large_models_are_tried_on_less() -> None:
    program = batched(lambda x: x @ torch.ones(1024, 1024), features(2, 64, 1024))
    batching = program.methods["forward"].batching
    assert batching is not None
    assert batching.evidence.batch_sizes == (2,)
    assert batching.evidence.comparisons == 2


def test_a_loop_that_the_values_of_one_row_keep_going_is_not_for_several() -> None:
    note = why_not(Settled(), features(3, 4).abs())
    assert "a loop does not end within 1000 steps with extreme values in one row" in note


def test_a_loop_that_ends_for_all_values_is_for_several() -> None:
    def halved(x: torch.Tensor) -> torch.Tensor:
        def goes_on(values: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
            return step < 3

        def halve(values: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return values / 2, step + 1

        return while_loop(goes_on, halve, (x.clone(), torch.tensor(0)))[0]

    assert batched(halved, features(3, 4)).methods["forward"].batching is not None
