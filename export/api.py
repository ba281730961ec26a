"""`export`: from a function or module to a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from slipway.export.assertions import describe_assertions
from slipway.export.batching import find_batching
from slipway.export.cases import make_cases
from slipway.export.dimensions import bind_example, declare
from slipway.export.encoding import encode
from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.gate import check_against_eager, preserved_buffers
from slipway.export.layout import differs_when_transposed
from slipway.export.models import module_for_method, restoring_containers
from slipway.export.positions import sources_of
from slipway.export.sources import user_line_of_exception
from slipway.export.spec import DynamicShapes, ExportSpec, MethodSpec
from slipway.export.spec_types import require_types
from slipway.export.tightening import tighten
from slipway.export.tracing import Traced, Tracer, trace_and_settle
from slipway.export.translation import is_from_tracing, translate
from slipway.export.weights import require_values
from slipway.program.batching import Batching
from slipway.program.cases import Case
from slipway.program.contract import DEFAULT_METHOD, Contract
from slipway.program.program import Program

__all__ = ["assemble", "export", "export_spec", "run_example"]


def export(
    f: torch.nn.Module | Callable[..., Any],
    args: torch.Tensor | tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: DynamicShapes | None = None,
    **options: Any,
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
      args, kwargs, dynamic_shapes: as `MethodSpec` explains them.
      **options: the other fields of `ExportSpec`.

    Returns:
      A program that is called as `f` is, on the device of its weights, and that can be saved.

    Raises:
      ExportError: `f` cannot be traced into one graph, needs more than was declared, or gives
        other results than its graph.
    """
    return export_spec(
        ExportSpec(model=f, args=args, kwargs=kwargs, dynamic_shapes=dynamic_shapes, **options)
    )


def export_spec(spec: ExportSpec) -> Program:
    """Traces what a spec describes, as `export` does. Raises: ExportError."""
    require_types(spec)
    methods = spec.methods or {DEFAULT_METHOD: spec}
    if isinstance(spec.model, torch.nn.Module):
        require_values(
            spec.model,
            "load a checkpoint: torch_export(weights = …) in a BUILD file, or "
            "load_weights(module, …) in Python; or make the module on the CPU",
        )
    traced: dict[str, Traced] = {}
    contracts: dict[str, Contract] = {}
    for name, method in sorted(methods.items()):
        module = module_for_method(spec.model, name, method)
        args = method.args if isinstance(method.args, tuple) else (method.args,)
        kwargs = dict(method.kwargs or {})
        declared = declare(bind_example(module.forward, args, kwargs), method)
        module = restoring_containers(module, args, kwargs)
        run_example(module, args, kwargs)
        tracer = Tracer(module, method.output_names, name, spec.strict, alone=len(methods) == 1)
        traced[name], contracts[name] = trace_and_settle(
            tracer, args, kwargs, declared, method.accept_narrowing
        )
        describe_assertions(traced[name].capture.exported.graph, traced[name].derivation.table)
    return assemble(traced, contracts, spec.custom_ops, spec.cases, methods)


def assemble(
    traced: Mapping[str, Traced],
    contracts: Mapping[str, Contract],
    custom_ops: Sequence[str],
    case_count: int,
    methods: Mapping[str, MethodSpec] | None = None,
) -> Program:
    """Makes a program of traced methods, and compares it with what they were traced from.

    Args:
      traced: the methods by name, sorted.
      contracts: of each; what the comparison finds out is added.
      custom_ops, case_count: as in `ExportSpec`.
      methods: what the user says of each.

    Raises:
      ExportError: a program cannot hold them, or gives other results.
    """
    contracts = dict(contracts)
    graphs, weights = encode(
        [(item.capture.exported, contracts[name]) for name, item in traced.items()],
        custom_ops,
    )

    cases: list[Case] = []

    def build() -> Program:
        return Program(
            contracts,
            graphs,
            weights,
            device=torch.device("cpu"),
            custom_ops=custom_ops,
            cases=lambda: cases,
            sources=sources_of(traced, contracts),
        )

    program = build()
    for name, item in traced.items():
        inferred = {symbol.name for symbol in item.derivation.table.inferred}
        contracts[name] = tighten(item.model, program, name, item.example, inferred)
        if differs_when_transposed(item.model, program, name, item.example):
            contracts[name] = replace(contracts[name], contiguous=True)
    program = build()
    for name, item in traced.items():
        notes = check_against_eager(item.model, program, name, item.example)
        contracts[name] = replace(contracts[name], notes=(*contracts[name].notes, *notes))
        found = find_batching(program, name, item.example, (methods or {}).get(name, MethodSpec()))
        if isinstance(found, Batching):
            contracts[name] = replace(contracts[name], batching=found)
        elif found is not None:
            contracts[name] = replace(contracts[name], notes=(*contracts[name].notes, found))
        made, notes = make_cases(item.model, contracts[name], item.example, case_count)
        cases += made
        contracts[name] = replace(contracts[name], notes=(*contracts[name].notes, *notes))
    return build()


def run_example(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Runs the model on clones of the example, to tell a broken model from one beyond tracing."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), preserved_buffers(module):
            module(*args, **kwargs)
    except Exception as error:
        if is_from_tracing(error):
            raise translate(error) from error
        advice = "make the example inputs a call that works, or mend the model"
        if "does not require grad" in str(error):
            advice = (
                "take derivatives by torch.func, or compute what they are taken of within `with "
                "torch.enable_grad():`; exports and servers call models under torch.no_grad()"
            )
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the model itself fails on the example: {type(error).__name__}: {error}",
            advice,
            user_line_of_exception(error),
        ) from error
