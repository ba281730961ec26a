"""From programs back to torch's exported programs."""

from __future__ import annotations

import inspect
import operator
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as shape_config

from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.gate import bindings
from slipway.export.recurrent import recurrent_layers_of_any_length
from slipway.export.translation import quiet_torch, translate
from slipway.program.calls import flatten_call
from slipway.program.contract import DEFAULT_METHOD, Contract, Symbol, find_binders
from slipway.program.expressions import (
    Add,
    All,
    AnyOf,
    Comparison,
    Condition,
    Constant,
    Expression,
    FloorDivide,
    Maximum,
    Minimum,
    Modulo,
    Multiply,
    Negation,
    SymbolReference,
)
from slipway.program.graph_codec import graph_from_proto
from slipway.program.program import Program
from slipway.program.torch_types import to_torch

__all__ = ["to_exported_program"]

_TRIES = 2048

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def to_exported_program(program: Program, method: str = DEFAULT_METHOD) -> ExportedProgram:
    """Makes torch's exported program of a method, for whatever takes those.

    The graph is traced by torch.export, under the conditions of the contract, so that torch's
    ranges and guards are its own. They say less than the contract: torch enforces no lower bound
    below 3, no rank and no dtype, and not that a size is odd where another one shows its half. All
    weights become buffers of their own names, since a program does not say which were parameters.

    Args:
      program: on the device where torch's is to be.
      method: of the program.

    Raises:
      ExportError: there is no such method, or torch cannot trace it.
    """
    if method not in program.methods:
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the program has no method '{method}'",
            f"name one of {', '.join(program.methods)}",
        )
    contract = program.methods[method].contract
    example: Any = contract.input_tree.unflatten(iter(_example_leaves(contract, program.device)))
    args, kwargs = example
    try:
        with (
            torch.no_grad(),
            shape_config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
            quiet_torch(),
            recurrent_layers_of_any_length(),
        ):
            return torch.export.export(
                _module(program, method), args, kwargs, dynamic_shapes=_dynamic_shapes(contract)
            )
    except Exception as error:
        raise translate(error) from error


def _example_leaves(contract: Contract, device: torch.device) -> Iterator[object]:
    binding = _binding(contract)
    for spec in contract.inputs:
        if spec.tensor is None:
            yield spec.constant
            continue
        shape = [size.evaluate(binding) for size in spec.tensor.shape]
        yield torch.zeros(shape, dtype=to_torch(spec.tensor.dtype), device=device)


def _binding(contract: Contract) -> tuple[int, ...]:
    """Returns legal values of the symbols, if possible neither 0 nor 1 nor like each other."""
    source = random.Random(0)
    for reach in (8, 64, 512, 4096):
        for _ in range(_TRIES):
            binding = tuple(_drawn(source, symbol, reach) for symbol in contract.symbols)
            if contract.is_legal(binding):
                return binding
    for binding in bindings(contract):
        return binding
    raise ExportError(
        ExportErrorKind.INVALID_SPEC,
        "no sizes were found that satisfy the contract's relations, so there is no example to "
        "trace with",
        "export the model itself with torch.export",
    )


def _drawn(source: random.Random, symbol: Symbol, reach: int) -> int:
    high = symbol.minimum + reach if symbol.maximum is None else symbol.maximum
    low = min(max(symbol.minimum, 2), high)
    return source.randint(low, min(high, low + reach))


def _dynamic_shapes(contract: Contract) -> dict[str, Any]:
    def of(size: Expression) -> Any:
        match size:
            case Constant():
                return Dim.STATIC
            case SymbolReference(index, _):
                symbol = contract.symbols[index]
                return Dim.AUTO(min=symbol.minimum, max=symbol.maximum)
            case _:
                return Dim.AUTO

    leaves = (
        None if spec.tensor is None else dict(enumerate(map(of, spec.tensor.shape)))
        for spec in contract.inputs
    )
    shapes: Any = contract.input_tree.unflatten(leaves)
    args, kwargs = shapes
    return {**dict(zip(contract.parameters, args, strict=True)), **kwargs}


def _module(program: Program, method: str) -> torch.nn.Module:
    """Returns a module that runs a method, and states its contract's conditions as it does."""
    place = list(program.methods).index(method)
    contract = program.methods[method].contract
    graph = program.graphs.methods[place]
    namespaces = {item.name.partition("::")[0] for item in program.graphs.operators}
    run = graph_from_proto(
        graph, program.graphs.operators, program.device, namespaces, torch_assertions=True
    )
    module = torch.nn.Module()
    names = list(program.weights)
    used = [names[item.weight] for item in graph.inputs if item.WhichOneof("kind") == "weight"]
    for name in used:
        weight = program.weights[name]
        # What calls change, they must not change in the program.
        _add_buffer(module, name, weight.clone() if name in program.state else weight)

    def forward(*args: Any, **kwargs: Any) -> Any:
        leaves = flatten_call(contract, args, kwargs)
        tensors = {
            spec.name: leaf
            for spec, leaf in zip(contract.inputs, leaves, strict=True)
            if isinstance(leaf, torch.Tensor)
        }
        _state_conditions(contract, tensors)
        results = iter(
            run(
                *(
                    _buffer(module, names[item.weight])
                    if item.WhichOneof("kind") == "weight"
                    else leaves[item.input]
                    for item in graph.inputs
                )
            )
        )
        return contract.output_tree.unflatten(
            next(results) if spec.tensor is not None or spec.integer is not None else spec.constant
            for spec in contract.outputs
        )

    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for name in contract.parameters
        ]
        + [
            inspect.Parameter(str(name), inspect.Parameter.KEYWORD_ONLY)
            for name in contract.input_tree.children[1].keys
        ]
    )
    module.forward = forward
    return module.eval()


def _add_buffer(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    *path, last = name.split(".")
    for step in path:
        if step not in module._modules:
            module.add_module(step, torch.nn.Module())
        module = module.get_submodule(step)
    module.register_buffer(last, tensor)


def _buffer(module: torch.nn.Module, name: str) -> torch.Tensor:
    path, _, last = name.rpartition(".")
    buffer: torch.Tensor = module.get_submodule(path)._buffers[last]  # type: ignore[assignment]
    return buffer


def _state_conditions(contract: Contract, tensors: Mapping[str, torch.Tensor]) -> None:
    """Has tracing take what the contract says of sizes, while they are symbolic, for granted."""
    values = []
    determining = {(item.input, item.dimension) for item in find_binders(contract)}
    for binder, symbol in zip(find_binders(contract), contract.symbols, strict=True):
        size: Any = tensors[binder.input].shape[binder.dimension]
        if (binder.factor, binder.offset) != (1, 0):
            _require((size - binder.offset) % binder.factor == 0)
            size = (size - binder.offset) // binder.factor
            _require(size >= symbol.minimum)
            if symbol.maximum is not None:
                _require(size <= symbol.maximum)
        values.append(size)
    for name, spec in contract.tensor_inputs.items():
        for dimension, expression in enumerate(spec.shape):
            if (name, dimension) not in determining and not isinstance(expression, Constant):
                _require(tensors[name].shape[dimension] == _size(expression, values))
    for relation in contract.relations:
        _require(_truth(relation.condition, values))


def _require(condition: Any) -> None:
    torch._check(condition)  # type: ignore[no-untyped-call]


def _size(expression: Expression, values: Sequence[Any]) -> Any:
    """Returns the value of an expression over sizes that may be symbolic."""

    def operands(items: Sequence[Expression]) -> Iterator[Any]:
        return (_size(item, values) for item in items)

    match expression:
        case Constant(value):
            return value
        case SymbolReference(index, _):
            return values[index]
        case Add(items):
            return reduce(operator.add, operands(items))
        case Multiply(items):
            return reduce(operator.mul, operands(items))
        case Minimum(items):
            return reduce(torch.sym_min, operands(items))
        case Maximum(items):
            return reduce(torch.sym_max, operands(items))
        case FloorDivide(left, right):
            return _size(left, values) // _size(right, values)
        case Modulo(left, right):
            return _size(left, values) % _size(right, values)
        case _:
            raise TypeError(f"{expression} has no value beforehand")


def _truth(condition: Condition, values: Sequence[Any]) -> Any:
    """Returns whether a condition holds for sizes that may be symbolic, without asking."""
    match condition:
        case Comparison(symbol, left, right):
            return _COMPARISONS[symbol](_size(left, values), _size(right, values))
        case All(conditions):
            return reduce(operator.and_, (_truth(item, values) for item in conditions))
        case AnyOf(conditions):
            return reduce(operator.or_, (_truth(item, values) for item in conditions))
        case Negation(inner):
            return torch.sym_not(_truth(inner, values))  # type: ignore[no-untyped-call]
        case _:
            raise TypeError(f"{condition} is no condition")
