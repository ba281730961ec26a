"""The kinds of program of which each release leaves a golden.

To add one: write a function here, list it in KINDS, and run `./bazelw run
//tests/compatibility:write_goldens`. Goldens of earlier releases are never changed or deleted.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch

from slipway.export import Dim, ExportSpec, MethodSpec

__all__ = ["KINDS"]


def multilayer_perceptron() -> ExportSpec:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    rows = Dim("rows", min=1, max=16)
    return ExportSpec(model=model.eval(), args=torch.randn(3, 4), dynamic_shapes=({0: rows},))


def convolution() -> ExportSpec:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.MaxPool2d(2),
    )
    high, wide = Dim("high", min=1, max=4), Dim("wide", min=1, max=4)
    return ExportSpec(
        model=model.eval(),
        args=torch.randn(2, 3, 8, 12),
        dynamic_shapes=({0: Dim("batch", min=1, max=4), 2: 4 * high, 3: 4 * wide},),
    )


class _Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projections = torch.nn.Linear(8, 24)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = self.projections(states).chunk(3, dim=-1)
        scores = (query @ key.transpose(-2, -1)).masked_fill(~mask[:, None, :], -1e9)
        return torch.softmax(scores, dim=-1) @ value


def attention() -> ExportSpec:
    return ExportSpec(
        model=_Attention().eval(),
        args=(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)),
        dynamic_shapes={"states": "batch, seq, 8", "mask": "batch, seq"},
        symbols={"batch": (1, 8), "seq": (1, 32)},
    )


def relations() -> ExportSpec:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1) + y

    return ExportSpec(
        model=model,
        args=(torch.randn(3, 4), torch.randn(12)),
        dynamic_shapes={"x": "heads, width", "y": "tokens"},
        symbols={"heads": {1, 2, 3, 6}, "width": (1, 8), "tokens": (1, 48)},
        relations=["tokens == heads * width"],
    )


def control_flow() -> ExportSpec:
    def model(x: torch.Tensor) -> torch.Tensor:
        chosen = torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))
        _, result = torch.while_loop(
            lambda count, value: count < 3,
            lambda count, value: (count + 1, value + chosen),
            (torch.tensor(0), chosen),
        )
        return result

    return ExportSpec(model=model, args=torch.randn(4))


class _Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x)
        return self.total * 2


def state() -> ExportSpec:
    return ExportSpec(model=_Counter(), args=torch.ones(3))


_Pair = namedtuple("_Pair", ["first", "second"])


def containers() -> ExportSpec:
    def model(pair: _Pair, options: dict[str, Any], *, scale: float) -> Any:
        return {"sum": pair.first + pair.second, "list": [options["x"][0] * scale], "none": None}

    return ExportSpec(
        model=model,
        args=(_Pair(torch.randn(2), torch.randn(2)), {"x": (torch.randn(3),)}),
        kwargs={"scale": 0.5},
    )


def dtypes() -> ExportSpec:
    def model(
        a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return a.to(torch.float32) + 1, b & True, c * 2, d.to(torch.int64).sum()

    return ExportSpec(
        model=model,
        args=(
            torch.randn(2, dtype=torch.bfloat16),
            torch.tensor([True, False]),
            torch.arange(3, dtype=torch.int16),
            torch.arange(4, dtype=torch.uint8),
        ),
    )


class _TwoMethods(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens)

    def decode(self, states: torch.Tensor) -> torch.Tensor:
        return states @ self.table.weight.T


def methods() -> ExportSpec:
    return ExportSpec(
        model=_TwoMethods().eval(),
        methods={
            "encode": MethodSpec(args=torch.randint(10, (3,)), dynamic_shapes={"tokens": "n"}),
            "decode": MethodSpec(args=torch.randn(3, 4), dynamic_shapes={"states": "n, 4"}),
        },
    )


def data_dependent() -> ExportSpec:
    def model(x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        taken = count.item()
        torch._check(taken >= 0)
        torch._check(taken <= x.shape[0])
        return x[:taken] * 2

    return ExportSpec(model=model, args=(torch.randn(5), torch.tensor(2)))


KINDS: dict[str, Callable[[], ExportSpec]] = {
    function.__name__: function
    for function in (
        multilayer_perceptron,
        convolution,
        attention,
        relations,
        control_flow,
        state,
        containers,
        dtypes,
        methods,
        data_dependent,
    )
}
