"""Whatever a user calls a model, as a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.spec import MethodSpec

__all__ = ["module_for_method"]


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
            f"the model is a {type(model).__name__}",
            "give a torch.nn.Module or a function",
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
            f"the function of the method '{name}' is a {type(function).__name__}",
            "give a function",
        )
    if isinstance(function, torch.nn.Module):
        return function
    module = torch.nn.Module()
    module.forward = function
    if isinstance(model, torch.nn.Module):
        # So that tracing finds the weights, under their own names.
        for child_name, child in model.named_children():
            module.add_module(child_name, child)
        module._parameters = model._parameters
        module._buffers = model._buffers
        module.training = model.training
        return module
    return module.eval()
