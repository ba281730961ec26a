"""Models for the differential test of contracts, and what is declared of each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["AUTO", "SUBJECTS", "Linear", "Size", "Subject", "TensorInput"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A declared size: factor*symbol + offset."""

    symbol: str
    factor: int = 1
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.factor}*{self.symbol} + {self.offset}"


AUTO = "auto"
"""A size that is left to tracing."""

Size = int | str | Linear
"""An int is static, AUTO is left to tracing, another str is the symbol of that name."""


@dataclass(frozen=True, slots=True)
class TensorInput:
    """A tensor of the example, and what is declared of its dimensions."""

    example: tuple[int, ...]
    sizes: tuple[Size, ...]
    dtype: torch.dtype = torch.float32

    def form(self, dimension: int) -> Linear | None:
        """Returns a dimension's form, or None if it is static or left to tracing."""
        size = self.sizes[dimension]
        if isinstance(size, int) or size == AUTO:
            return None
        return Linear(size) if isinstance(size, str) else size


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, and what is declared of it.

    Attributes:
      name: of the model.
      model: takes the tensors, arranged.
      inputs: the tensors.
      ranges: of the symbols: (minimum, maximum) or a set.
      relations: between symbols, as text and as a function of their values.
      arrange: puts the tensors, or what is declared of each, into positional arguments.
      undefined: tells whether a call makes torch's own operators read beyond their inputs, so that
        what they give says nothing.
      largest: about how large sizes should get in the test.
    """

    name: str
    model: Callable[..., Any]
    inputs: tuple[TensorInput, ...]
    ranges: Mapping[str, tuple[int, int] | frozenset[int]] = field(default_factory=dict)
    relations: Mapping[str, Callable[..., bool]] = field(default_factory=dict)
    arrange: Callable[[Sequence[Any]], tuple[Any, ...]] = tuple
    undefined: Callable[..., bool] = lambda *tensors: False
    largest: int = 14


def _automatic(*shape: int) -> TensorInput:
    return TensorInput(shape, (AUTO,) * len(shape))


_WEIGHT = torch.linspace(-1, 1, 64).reshape(8, 8)


def _seeded(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 1, generator=generator)
    return module.eval()


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _heads(x: torch.Tensor) -> torch.Tensor:
    rows, length, width = x.shape
    heads = x.view(rows, length, 2, width // 2).transpose(1, 2)
    weights = (heads @ heads.transpose(-1, -2)).softmax(-1)
    return (weights @ heads).transpose(1, 2).reshape(rows, length, width)


def _causal(x: torch.Tensor) -> torch.Tensor:
    length = x.shape[1]
    mask = torch.arange(length)[:, None] >= torch.arange(length)[None, :]
    return torch.where(mask, x[:, :, None] * x[:, None, :], float("-inf")).softmax(-1)


class _Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(8, 4)
        self.positions = nn.Embedding(12, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.tokens(tokens)
        return embedded + self.positions.weight[: tokens.shape[1]]


def _by_product(x: torch.Tensor) -> torch.Tensor:
    return x + 1 if x.shape[0] * x.shape[1] > 30 else x - 1


def _either(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    n = min(x.shape[0], y.shape[0])
    return x[:n] + y[:n]


def _cond(x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.cond(x.shape[0] > 4, torch.sin, torch.cos, (x,))
    return result


def _pool(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 3)


def _pad(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, (0, 5 - x.shape[1] % 5))


_CONVOLUTION = _seeded(nn.Conv2d(2, 3, 3, stride=2, padding=1))

_NAMED = (
    Subject(
        "linear",
        lambda x: x @ _WEIGHT,
        (TensorInput((4, 8), ("b", 8)),),
        {"b": (3, 16)},
    ),
    Subject(
        "add_one_symbol",
        lambda x, y: x + y,
        (TensorInput((4, 8), ("b", 8)), TensorInput((4, 8), ("b", 8))),
        {"b": (1, 16)},
    ),
    Subject("add_auto", lambda x, y: x + y, (_automatic(4, 8), _automatic(4, 8))),
    Subject(
        "double_rows",
        lambda x, y: torch.cat([x, x]) + y,
        (TensorInput((4, 3), ("b", 3)), TensorInput((8, 3), (Linear("b", 2), 3))),
        {"b": (0, 9)},
    ),
    Subject(
        "odd_rows",
        lambda x, y: torch.cat([x, x, x[:1]]) + y,
        (TensorInput((4, 3), ("b", 3)), TensorInput((9, 3), (Linear("b", 2, 1), 3))),
        {"b": (1, 9)},
    ),
    Subject(
        "hidden_root",
        lambda x, y: x[1:] + y,
        (TensorInput((7,), (Linear("n", 2, 1),)), TensorInput((6,), (Linear("n", 2),))),
        {"n": (1, 6)},
    ),
    Subject(
        "multiple_of_8",
        lambda x: x * 2 if x.shape[0] % 8 == 0 else x,
        (TensorInput((16, 8), (AUTO, 8)),),
        largest=40,
    ),
    Subject(
        "view_auto",
        lambda x: x.view(-1, 8, 8),
        (TensorInput((16, 8), (AUTO, 8)),),
        largest=40,
    ),
    Subject(
        "view_declared",
        lambda x: x.view(-1, 8, 8),
        (TensorInput((16, 8), (Linear("b", 8), 8)),),
        {"b": (1, 5)},
        largest=40,
    ),
    Subject(
        "flatten_and_add",
        lambda x, y: x.reshape(-1) + y,
        (_automatic(4, 3), _automatic(12)),
    ),
    Subject(
        "cat_two",
        lambda x, y, z: torch.cat([x, y]) + z,
        (_automatic(2, 6), _automatic(3, 6), _automatic(5, 6)),
    ),
    Subject(
        "at_most_twice",
        lambda x, y: x.sum() + y.sum() if x.shape[0] <= 2 * y.shape[0] else x.sum(),
        (_automatic(4, 2), _automatic(3, 2)),
    ),
    Subject("max_pool", _pool, (_automatic(2, 2, 7, 8),), largest=10),
    Subject(
        "adaptive_pool",
        lambda x: F.adaptive_avg_pool2d(x, 2),
        (TensorInput((2, 2, 6, 8), (AUTO, 2, AUTO, AUTO)),),
        largest=10,
    ),
    Subject(
        "slice_by_other", lambda x, y: x[:, : y.shape[0]] * y, (_automatic(3, 6), _automatic(4))
    ),
    Subject(
        "containers",
        lambda inputs: {"sum": inputs["a"] + inputs["b"][0], "rest": [inputs["b"][1] * 2]},
        (_automatic(4, 3), _automatic(4, 3), TensorInput((5,), ("n",))),
        {"n": (2, 9)},
        arrange=lambda tensors: ({"a": tensors[0], "b": [tensors[1], tensors[2]]},),
    ),
    Subject(
        "convolution",
        _CONVOLUTION,
        (TensorInput((2, 2, 7, 8), ("b", 2, AUTO, AUTO)),),
        {"b": (1, 6)},
        largest=10,
    ),
    Subject(
        "convolution_1d",
        lambda x: F.conv1d(x, torch.ones(2, 2, 5)),
        (TensorInput((2, 2, 9), (AUTO, 2, AUTO)),),
    ),
    Subject("pad_to_multiple", _pad, (_automatic(3, 7),)),
    Subject("pad_reflect", lambda x: F.pad(x, (2, 2), mode="reflect"), (_automatic(2, 3, 7),)),
    Subject(
        "einsum",
        lambda x, y: torch.einsum("bij,bjk->bik", x, y),
        (_automatic(2, 3, 4), _automatic(2, 4, 5)),
        largest=8,
    ),
    Subject(
        "matmul",
        lambda x, y: torch.matmul(x, y),
        (_automatic(2, 3, 4), _automatic(4, 5)),
        largest=8,
    ),
    Subject("matrix_vector", lambda x, y: torch.matmul(x, y), (_automatic(3, 4), _automatic(4))),
    Subject(
        "attention",
        _attention,
        (_automatic(2, 2, 5, 4), _automatic(2, 2, 6, 4), _automatic(2, 2, 6, 4)),
        undefined=lambda q, k, v: bool(k.shape[-2:-1] != v.shape[-2:-1]),
        largest=8,
    ),
    Subject("heads", _heads, (TensorInput((2, 5, 8), ("b", "s", 8)),), {"b": (1, 9), "s": (1, 12)}),
    Subject("heads_auto", _heads, (_automatic(2, 5, 8),), largest=9),
    Subject("causal", _causal, (TensorInput((2, 5), ("b", "s")),), {"b": (1, 9), "s": (1, 12)}),
    Subject(
        "layer_norm",
        _seeded(nn.LayerNorm(6)),
        (TensorInput((2, 5, 6), ("b", "s", 6)),),
        {"b": (1, 9), "s": (1, 12)},
    ),
    Subject("batch_norm", _seeded(nn.BatchNorm1d(3)), (TensorInput((2, 3, 5), (AUTO, 3, AUTO)),)),
    Subject("embedding", _Embedding().eval(), (TensorInput((2, 5), (AUTO, AUTO), torch.int64),)),
    Subject("where", lambda c, x, y: torch.where(c > 0, x, y), (_automatic(3, 4),) * 3),
    Subject("broadcast_rows", lambda x, y: x * y, (_automatic(3, 4), _automatic(4))),
    Subject(
        "broadcast_one", lambda x, y: x * y, (_automatic(3, 4), TensorInput((1, 4), (1, AUTO)))
    ),
    Subject(
        "expand", lambda x, y: x[:, None].expand(-1, y.shape[0]) + y, (_automatic(3), _automatic(5))
    ),
    Subject("stack", lambda x, y: torch.stack([x, y, x]), (_automatic(3, 4), _automatic(3, 4))),
    Subject("roll", lambda x: torch.roll(x, 2, 0) - x, (_automatic(5, 2),)),
    Subject("chunk", lambda x: torch.chunk(x, 3)[1] * 2, (_automatic(7, 2),)),
    Subject("chunk_all", lambda x: list(torch.chunk(x, 3)), (_automatic(7, 2),)),
    Subject("split", lambda x: x.split([2, x.shape[0] - 2])[1] + 1, (_automatic(7, 2),)),
    Subject("unsqueeze_squeeze", lambda x: x.unsqueeze(1).squeeze(1) + 1, (_automatic(4, 3),)),
    Subject("squeeze_dynamic", lambda x: x.squeeze(0) + 1, (_automatic(4, 3),)),
    Subject("repeat", lambda x: x.repeat(2, 3).flatten(), (_automatic(2, 3),)),
    Subject("pairs", lambda x: x.reshape(x.shape[0] // 2, 2, -1).sum(1), (_automatic(6, 4),)),
    Subject("unfold", lambda x: x.unfold(0, 3, 2).sum(-1), (_automatic(7, 2),)),
    Subject(
        "pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), (_automatic(1, 2, 6, 8),), largest=9
    ),
    Subject(
        "interpolate",
        lambda x: F.interpolate(x, scale_factor=2),
        (_automatic(1, 2, 3, 4),),
        largest=7,
    ),
    Subject("top_3", lambda x: x.topk(3, -1).values, (_automatic(2, 6),)),
    Subject("row_3", lambda x: x[3] + x[-1], (_automatic(6, 2),)),
    Subject("amax", lambda x: x.amax(1) + x.mean(1), (_automatic(3, 4),)),
    Subject("cumsum_sort", lambda x: x.cumsum(0).sort(1).values, (_automatic(3, 4),)),
    Subject("mean_by_shape", lambda x: x.sum(0) / x.shape[0] * x.numel(), (_automatic(4, 3),)),
    Subject("by_product", _by_product, (_automatic(5, 8),)),
    Subject(
        "not_four", lambda x: x + 1 if x.shape[0] == 4 else x * x.shape[0], (_automatic(5, 2),)
    ),
    Subject("smaller_of_two", _either, (_automatic(5, 2), _automatic(3, 2))),
    Subject("cond_on_shape", _cond, (_automatic(5, 2),)),
    Subject("linear_auto", lambda x: F.linear(x, _WEIGHT), (_automatic(2, 5, 8),)),
    Subject("diagonal", lambda x: x.tril(1).diagonal() * 2, (_automatic(4, 5),)),
    Subject(
        "relation",
        lambda x, y: x.sum() + y.sum(),
        (TensorInput((12, 2), ("tokens", 2)), TensorInput((3, 4), ("heads", "width"))),
        {"tokens": (1, 40), "heads": (1, 6), "width": (1, 6)},
        {"tokens == heads * width": lambda tokens, heads, width: tokens == heads * width},
        largest=40,
    ),
    Subject(
        "relation_that_reshape_needs",
        lambda x, y: x.reshape(y.shape[0], y.shape[1]) + y,
        (TensorInput((12,), ("tokens",)), TensorInput((3, 4), ("heads", "width"))),
        {"tokens": (1, 40), "heads": (1, 6), "width": (1, 6)},
        {"tokens == heads * width": lambda tokens, heads, width: tokens == heads * width},
        largest=40,
    ),
    Subject(
        "discrete_sizes",
        lambda x: x.cumsum(0),
        (TensorInput((4, 3), ("b", 3)),),
        {"b": frozenset({1, 2, 4, 8})},
    ),
    Subject(
        "at_most_8_tokens_per_row",
        lambda x, y: x.sum() * y,
        (TensorInput((6,), ("tokens",)), TensorInput((2,), ("rows",))),
        {"tokens": (0, 40), "rows": (1, 9)},
        {"tokens <= 8 * rows": lambda tokens, rows: tokens <= 8 * rows},
        largest=40,
    ),
)

_STEPS: Sequence[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = (
    ("relu", torch.relu),
    ("t", lambda x: x.t()),
    ("scale", lambda x: x * x.shape[0] + x.shape[1]),
    ("drop", lambda x: x[1:]),
    ("inner", lambda x: x[:, 1:-1]),
    ("half", lambda x: x[: x.shape[0] // 2]),
    ("every_other", lambda x: x[::2]),
    ("twice", lambda x: torch.cat([x, x], 1)),
    ("pad", lambda x: F.pad(x, (1, 2, 0, 1))),
    ("roll", lambda x: x.roll(1, 0)),
    ("first_chunk", lambda x: x.chunk(2, 1)[0]),
    ("pairs", lambda x: x.reshape(-1, 2)),
    ("flat", lambda x: x.reshape(1, -1)),
    ("fold", lambda x: x.reshape(x.shape[0], -1, 2).sum(-1)),
    ("stack", lambda x: torch.stack([x, x + 1], 1).flatten(0, 1)),
    ("outer", lambda x: x @ x.t()),
    ("softmax", lambda x: x.softmax(0)),
    ("centre", lambda x: x - x.mean(1, keepdim=True)),
    ("expand", lambda x: x.sum(0, keepdim=True).expand(3, -1)),
    ("window", lambda x: x.unfold(1, 2, 1).amax(-1)),
    ("branch", lambda x: x + 1 if x.shape[1] > 3 else x - 1),
    ("even", lambda x: x * 2 if x.shape[0] % 2 == 0 else x * 3),
)


def _chain(
    steps: Sequence[Callable[[torch.Tensor], torch.Tensor]],
) -> Callable[[torch.Tensor], torch.Tensor]:
    def model(x: torch.Tensor) -> torch.Tensor:
        for step in steps:
            x = step(x)
        return x

    return model


def _chains(count: int) -> Iterator[Subject]:
    """Yields models that are made of random steps on a matrix and work for the example."""
    source = random.Random(0)
    found = 0
    while found < count:
        chosen = source.sample(_STEPS, source.randint(2, 4))

        model = _chain([step for _, step in chosen])
        try:
            model(torch.ones(6, 8))
        except RuntimeError:
            continue
        found += 1
        yield Subject("-".join(name for name, _ in chosen), model, (_automatic(6, 8),))


SUBJECTS = tuple(itertools.chain(_NAMED, _chains(16)))
