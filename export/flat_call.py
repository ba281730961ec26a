"""A model as a module that takes its tensors one by one.

torch.export is given only that. How arguments are nested, and those that are no tensors, are dealt
with here, in the same way for every kind of container: torch.export itself cannot match some of
them with their dynamic shapes. Buffers that the model replaces are dealt with here too:
torch.export notices that in the outermost module alone, and drops it silently in others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from slipway.export.dimensions import Declaration, Declared, ExampleCall
from slipway.export.errors import ExportError, ExportErrorKind

__all__ = ["MODEL_PREFIX", "flatten_model"]

MODEL_PREFIX = "model."
"""What the names of the model's weights begin with in the module that is traced."""


_Place = tuple[int, int]
"""The number of a tensor, and that of one of its dimensions."""


def flatten_model(
    model: torch.nn.Module,
    call: ExampleCall,
    declared: Mapping[str, Sequence[Declaration]],
    *,
    strict: bool,
) -> torch.nn.Module:
    """Returns a module whose positional parameters are the tensors of a call of `model`, in order.

    Its only submodule is the model, as `model`.

    Args:
      model: what the call calls.
      call: an example.
      declared: the dimensions of its tensors.
      strict: whether torch interprets bytecode, and then follows what happens to buffers itself.
    """
    _, structure = pytree.tree_flatten((call.args, call.kwargs))
    leaves = [leaf for _, leaf in call.leaves]
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    names = [call.leaves[place][0] for place in places]
    module = torch.nn.Module()
    module.model = model
    run = model if strict else _writing_into_buffers(model)
    module.forward = _forward(
        run, leaves, places, structure, _equal_sizes([declared[name] for name in names])
    )
    module.forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            # Numbered, since two names may differ only in what a parameter's name cannot have.
            inspect.Parameter(
                f"{''.join(c if c.isalnum() else '_' for c in name)}_{number}",
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
            )
            for number, name in enumerate(names)
        ]
    )
    module.training = model.training
    return module


def _writing_into_buffers(model: torch.nn.Module) -> Callable[..., Any]:
    """Returns the model's call, with buffers that it replaces being written into instead.

    That is what a graph can do: `self.count = self.count + 1` becomes `self.count.copy_(…)`.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        # Here and not before: while torch traces, the model's tensors are symbolic ones.
        before = [(module, dict(module._buffers), _tensors(module)) for module in model.modules()]
        result = model(*args, **kwargs)
        for module, buffers, attributes in before:
            for name, value in _tensors(module).items():
                if attributes.get(name) is not value:
                    raise ExportError(
                        ExportErrorKind.UNSUPPORTED_PYTHON,
                        f"the model keeps a tensor in the attribute '{name}' of its "
                        f"{type(module).__name__} when it is called",
                        "make it a buffer, with register_buffer in the constructor",
                    )
            for name, buffer in buffers.items():
                new = module._buffers.get(name)
                if new is buffer or buffer is None or new is None:
                    continue
                if new.shape != buffer.shape:
                    raise ExportError(
                        ExportErrorKind.UNSUPPORTED_PYTHON,
                        f"the model gives its buffer '{name}' the shape {tuple(new.shape)} "
                        f"instead of {tuple(buffer.shape)} when it is called",
                        "make the buffer as large as it can become, and write into a part of it",
                    )
                buffer.copy_(new)
                module._buffers[name] = buffer
        return result

    return run


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}


def _equal_sizes(declared: Sequence[Sequence[Declaration]]) -> list[tuple[_Place, _Place]]:
    """Returns for each dimension that is declared like an earlier one that one and itself."""
    first: dict[Declared, _Place] = {}
    pairs = []
    for tensor, dimensions in enumerate(declared):
        for dimension, declaration in enumerate(dimensions):
            if isinstance(declaration, Declared):
                place = tensor, dimension
                earlier = first.setdefault(declaration, place)
                if earlier != place:
                    pairs.append((earlier, place))
    return pairs


def _forward(
    model: Callable[..., Any],
    leaves: Sequence[Any],
    places: Sequence[int],
    structure: pytree.TreeSpec,
    equal_sizes: Sequence[tuple[_Place, _Place]],
) -> Callable[..., Any]:
    def forward(*tensors: torch.Tensor) -> Any:
        # Torch gives each of them a symbol of its own, and cannot simplify what has several, such
        # as `rows * heads // (other_rows * heads)`, until it knows that they are one.
        for (one, dimension), (other, other_dimension) in equal_sizes:
            equal = tensors[one].shape[dimension] == tensors[other].shape[other_dimension]
            torch._check(equal)  # type: ignore[no-untyped-call]
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = pytree.tree_unflatten(filled, structure)
        return model(*args, **kwargs)

    return forward
