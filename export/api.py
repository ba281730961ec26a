"""`export`: from a function or module to a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from slipway.export.dimensions import bind_example, declare
from slipway.export.encoding import encode
from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.gate import check_against_eager, preserved_buffers
from slipway.export.sources import user_line_of_exception
from slipway.export.spec import ExportSpec
from slipway.export.tracing import Tracer, settle
from slipway.program.program import DEFAULT_METHOD, Program

__all__ = ["export", "export_spec"]


def export(
    f: torch.nn.Module | Callable[..., Any],
    args: torch.Tensor | tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Mapping[str, Any] | Sequence[Any] | None = None,
    output_names: Sequence[str] | None = None,
    strict: bool = False,
) -> Program:
    """Traces a function or module into a program with one graph and its contract.

    Example:

        def scale(x):
            return x * x.shape[0]

        batch = Dim("batch", min=1, max=8)
        exported = export(scale, torch.ones(2, 3), dynamic_shapes={"x": {0: batch}})
        exported(torch.ones(5, 3))   # fives
        exported(torch.ones(9, 3))   # ContractViolation: … is 9; allowed: 1..8; …

    Args:
      f: what to trace.
      args, kwargs, dynamic_shapes, output_names, strict: as `ExportSpec` explains them.

    Returns:
      A program that is called as `f` is, on the device of its weights, and that can be saved.

    Raises:
      ExportError: `f` cannot be traced into one graph, needs more than was declared, or gives
        other results than its graph.
    """
    return export_spec(
        ExportSpec(
            model=f,
            args=args,
            kwargs=kwargs,
            dynamic_shapes=dynamic_shapes,
            output_names=output_names,
            strict=strict,
        )
    )


def export_spec(spec: ExportSpec) -> Program:
    """Traces what a spec describes, as `export` does. Raises: ExportError."""
    module = _as_module(spec.model)
    args = spec.args if isinstance(spec.args, tuple) else (spec.args,)
    kwargs = dict(spec.kwargs or {})
    call = bind_example(module.forward, args, kwargs)
    declared = declare(call, spec.dynamic_shapes)
    _run_example(module, args, kwargs)
    tracer = Tracer(module, spec.output_names, DEFAULT_METHOD, spec.strict)
    traced = tracer.trace(args, kwargs, declared)
    contract = settle(tracer, traced)
    graphs, weights = encode(traced.capture.exported, contract)
    program = Program({DEFAULT_METHOD: contract}, graphs, weights, device=torch.device("cpu"))
    check_against_eager(module, program, DEFAULT_METHOD, traced.example)
    return program


def _as_module(f: torch.nn.Module | Callable[..., Any]) -> torch.nn.Module:
    if isinstance(f, torch.nn.Module):
        return f
    if not callable(f):
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the model is a {type(f).__name__}",
            "give a torch.nn.Module or a function",
        )
    module = torch.nn.Module()
    module.forward = f
    return module.eval()


def _run_example(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Runs the model on clones of the example, to tell a broken model from one beyond tracing."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), preserved_buffers(module):
            module(*args, **kwargs)
    except Exception as error:
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the model itself fails on the example: {type(error).__name__}: {error}",
            "make the example inputs a call that works, or mend the model",
            user_line_of_exception(error),
        ) from error
