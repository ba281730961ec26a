"""Whatever a user calls a model, as a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from slipway.export.containers import tree_of
from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.spec import ExportSpec, MethodSpec
from slipway.program.words import type_of

__all__ = ["module_for_method", "restoring_containers"]


def module_for_method(
    model: torch.nn.Module | Callable[..., Any], name: str, method: MethodSpec
) -> torch.nn.Module:
    """Returns a module whose call is a method of a model, and whose weights have the model's names.

    Args:
      model: a module or a function.
      name: of the method.
      method: says which function it is, if it is not the model itself.

    Raises:
      ExportError: the model is neither, or has no such function.
    """
    if not callable(model):
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the model is {type_of(model)}",
            "call export_spec(spec) instead"
            if isinstance(model, ExportSpec)
            else "give a torch.nn.Module or a function",
        )
    function = method.function
    if function is None and name != "forward" and isinstance(model, torch.nn.Module):
        function = getattr(model, name, None)
        if function is None:
            raise ExportError(
                ExportErrorKind.INVALID_SPEC,
                f"the method '{name}' has no function, and the model has none of that name",
                "give it: MethodSpec(function=…)",
            )
    if function is None:
        function = model
    if not callable(function):
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the function of the method '{name}' is {type_of(function)}",
            "give a function",
        )
    if isinstance(function, torch.nn.Module):
        return function
    return _with_weights_of(model, function)


def restoring_containers(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> torch.nn.Module:
    """Returns a module that is called with plain containers where a model wants other types.

    To a program all dicts are one, and what torch's operators return is a named tuple; the model
    gets those that it has in an example of its arguments, such as an `OrderedDict`, or a library's
    own.

    Args:
      module: the model.
      args, kwargs: the example.
    """
    structure = pytree.tree_structure((args, dict(kwargs)))
    if not _has_others(structure):
        return module
    tree = tree_of(structure, "the example arguments")

    def forward(*args: Any, **kwargs: Any) -> Any:
        leaves = tree.flatten((args, kwargs), "the arguments")
        restored_args, restored_kwargs = pytree.tree_unflatten(leaves, structure)
        return module(*restored_args, **restored_kwargs)

    forward.__signature__ = inspect.signature(module.forward)  # type: ignore[attr-defined]
    return _with_weights_of(module, forward)


def _has_others(structure: pytree.TreeSpec) -> bool:
    """Returns whether there are containers that a program has plain ones for."""
    kind = structure.type
    return any(map(_has_others, structure.children())) or (
        isinstance(kind, type)
        and kind is not dict
        and (issubclass(kind, Mapping) or pytree.is_structseq_class(kind))
    )


def _with_weights_of(
    model: torch.nn.Module | Callable[..., Any], function: Callable[..., Any]
) -> torch.nn.Module:
    """Returns a module that calls a function, and has a model's weights under their own names."""
    module = torch.nn.Module()
    module.forward = function
    if not isinstance(model, torch.nn.Module):
        return module.eval()
    # So that tracing finds the weights.
    for child_name, child in model.named_children():
        module.add_module(child_name, child)
    module._parameters = model._parameters
    module._buffers = model._buffers
    module.training = model.training
    return module
