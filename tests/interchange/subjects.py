"""Models that are exported by torch, with what may vary of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

__all__ = ["SUBJECTS", "Subject"]


@dataclass(frozen=True)
class Subject:
    """A model, how torch is to export it, and calls of other sizes.

    Attributes:
      model: the module.
      call: returns arguments for sizes; the first of `sizes` is the example.
      sizes: legal ones.
      illegal: sizes that must be refused.
      dynamic: for torch.
      symbols: what the contract's are called, with their ranges.
      relations: of the contract.
      decompose: whether torch's program is made functional, on core operators.
    """

    model: torch.nn.Module
    call: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
    sizes: tuple[tuple[int, ...], ...]
    illegal: tuple[tuple[int, ...], ...]
    dynamic: Any
    symbols: Mapping[str, tuple[int, int | None]]
    relations: tuple[str, ...] = ()
    decompose: bool = False

    def exported(self) -> ExportedProgram:
        args, kwargs = self.call(*self.sizes[0])
        exported = torch.export.export(self.model, args, kwargs, dynamic_shapes=self.dynamic)
        return exported.run_decompositions() if self.decompose else exported


class _Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first = torch.nn.Linear(8, 8)
        self.layers = torch.nn.Sequential(first, torch.nn.ReLU())
        self.head = torch.nn.Linear(8, 8)
        self.head.weight = first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.layers(x)) + torch.tensor(2.0)
        return result


class _Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(2))
        self.count: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return x * self.count


class _Branch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] % 8 == 0 else x * 3


class _Nested(torch.nn.Module):
    def forward(
        self, pair: dict[str, torch.Tensor], *, scale: float = 2.0, bias: None = None
    ) -> dict[str, torch.Tensor]:
        doubled = torch.cat([pair["a"], pair["a"], pair["a"][:1]])
        return {"sum": doubled + pair["b"], "first": pair["a"] * scale}


class _Product(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1) + y


class _Cond(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        y = torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))
        return y, x.shape[0] * 2


class _Chosen(torch.nn.Module):
    def forward(self, x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        number = count.item()
        torch._check(number >= 1)  # type: ignore[no-untyped-call]
        torch._check(number <= x.shape[0])  # type: ignore[no-untyped-call]
        return x[:number].sum(0)


class _Several(torch.nn.Module):
    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.stack(tensors).sum(0)


class _Hidden(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum(0) + y.sum(0)


def _filled(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) / 7 - 1


def _one(*tail: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    return lambda size: ((_filled(size, *tail),), {})


_BATCH = Dim("batch", min=3, max=16)

SUBJECTS: dict[str, Callable[[], Subject]] = {
    "weights": lambda: Subject(
        _Layers().eval(),
        _one(8),
        ((5,), (3,), (16,)),
        ((2,), (17,)),
        {"x": {0: _BATCH}},
        {"x_0": (3, 16)},
    ),
    "decomposed": lambda: Subject(
        _Layers().eval(),
        _one(8),
        ((5,), (3,), (16,)),
        ((2,), (17,)),
        {"x": {0: _BATCH}},
        {"x_0": (3, 16)},
        decompose=True,
    ),
    "buffer": lambda: Subject(
        _Counter(), _one(2), ((5,), (3,)), ((2,),), {"x": {0: _BATCH}}, {"x_0": (3, 16)}
    ),
    "functional buffer": lambda: Subject(
        _Counter(),
        _one(2),
        ((5,), (3,)),
        ((2,),),
        {"x": {0: _BATCH}},
        {"x_0": (3, 16)},
        decompose=True,
    ),
    "branch": lambda: Subject(
        _Branch(),
        _one(2),
        ((8,), (16,), (64,)),
        ((9,), (4,)),
        {"x": {0: Dim.AUTO}},
        {"x_0": (2, None)},
        ("x_0 % 8 == 0",),
    ),
    "nested": lambda: Subject(
        _Nested(),
        lambda n: (
            ({"a": _filled(n, 3), "b": _filled(2 * n + 1, 3)},),
            {"scale": 0.5, "bias": None},
        ),
        ((4,), (1,), (9,)),
        ((0,), (10,)),
        {
            "pair": {"a": {0: (n := Dim("n", min=1, max=9))}, "b": {0: 2 * n + 1}},
            "scale": None,
            "bias": None,
        },
        {"pair_a_0": (1, 9)},
    ),
    "product": lambda: Subject(
        _Product(),
        lambda a, b: ((_filled(a, b), _filled(a * b)), {}),
        ((4, 3), (2, 7), (5, 5)),
        (),
        {"x": {0: Dim.AUTO, 1: Dim.AUTO}, "y": {0: Dim.AUTO}},
        {"x_0": (2, None), "x_1": (2, None), "y_0": (4, None)},
        ("y_0 == x_0*x_1",),
    ),
    "control flow": lambda: Subject(
        _Cond(), _one(3), ((4,), (3,)), ((2,),), {"x": {0: _BATCH}}, {"x_0": (3, 16)}
    ),
    "values": lambda: Subject(
        _Chosen(),
        lambda n: ((_filled(n, 3), torch.tensor(2)), {}),
        ((4,), (3,)),
        ((2,),),
        {"x": {0: _BATCH}, "count": None},
        {"x_0": (3, 16)},
    ),
    "variadic": lambda: Subject(
        _Several(),
        lambda n: ((_filled(n, 3), _filled(n, 3)), {}),
        ((4,), (3,)),
        (),
        {"tensors": ({0: Dim.AUTO}, {0: Dim.AUTO})},
        {"tensors_0_0": (2, None)},
    ),
    "hidden root": lambda: Subject(
        _Hidden(),
        lambda n: ((_filled(2 * n + 1, 3), _filled(2 * n, 3)), {}),
        ((4,), (1,), (9,)),
        ((10,),),
        {"x": {0: 2 * (k := Dim("k", min=1, max=9)) + 1}, "y": {0: 2 * k}},
        {"x_0_part": (1, 9)},
    ),
}
