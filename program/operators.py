"""Operators that a program may call: by name, from an allow-list, with their schemas compared."""

from __future__ import annotations

import functools
import importlib
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from slipway.program.errors import CorruptProgramError, OperatorMismatchError
from slipway.program.vmap import VMAP_STEPS

__all__ = [
    "check_arguments",
    "operator_name",
    "operator_schema",
    "resolve_operator",
    "subgraph_places",
]

_NAMESPACES = frozenset({"aten", "prims"})

# These reach outside the process, give a tensor the memory of another, which nobody could follow,
# or leave rows as they were in memory. No program has a use for them that we would want.
_REFUSED = frozenset(
    {
        "aten::_padded_dense_to_jagged_forward",
        "aten::_print",
        "aten::from_file",
        "aten::set",
        "aten::set_",
        "aten::set_data",
    }
)

_MAXIMUM_SCHEMA = 2048
"""How many characters of a schema are read; torch's own have 605 at most. Its parser overflows the
stack, and so ends the process, at some thousands of opening brackets."""

_NAME = re.compile(r"([a-z][a-z0-9_]*)::([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")

# Functions on integers and tuples that tracing leaves in a graph as Python.
_PYTHON_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "python::getitem": operator.getitem,
    "python::add": operator.add,
    "python::sub": operator.sub,
    "python::mul": operator.mul,
    "python::floordiv": operator.floordiv,
    "python::truediv": operator.truediv,
    "python::mod": operator.mod,
    "python::pow": operator.pow,
    "python::neg": operator.neg,
    "python::and": operator.and_,
    "python::or": operator.or_,
    "python::xor": operator.xor,
    "python::eq": operator.eq,
    "python::ne": operator.ne,
    "python::lt": operator.lt,
    "python::le": operator.le,
    "python::gt": operator.gt,
    "python::ge": operator.ge,
    "python::ceil": math.ceil,
    "python::floor": math.floor,
    "python::trunc": math.trunc,
    "python::round": round,
    "python::sym_float": torch.sym_float,
    "python::sym_int": torch.sym_int,
    "python::sym_max": torch.sym_max,
    "python::sym_min": torch.sym_min,
    "python::sym_not": torch.sym_not,
    "python::sym_ite": torch.sym_ite,
    "python::sym_sum": torch.sym_sum,
    "python::sym_sqrt": torch._sym_sqrt,  # type: ignore[attr-defined]
}
_FUNCTIONS = {**_PYTHON_FUNCTIONS, **VMAP_STEPS}
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}

# Operators that run subgraphs, and which of their arguments those are.
_CONTROL_FLOW: dict[str, tuple[int, ...]] = {
    "associative_scan": (0,),
    "cond": (1, 2),
    "map_impl": (0,),
    "scan": (0,),
    "while_loop": (0, 1),
    "wrap_with_autocast": (4,),
    "wrap_with_set_grad_enabled": (1,),
}


def operator_name(target: object, custom_ops: Collection[str] = ()) -> str:
    """Returns the name of a graph node's target.

    Args:
      target: what the node calls.
      custom_ops: namespaces, beside torch's own, whose operators programs may call.

    Raises:
      OperatorMismatchError: programs may not call it.
    """
    if isinstance(target, torch._ops.OpOverload):
        name = f"{target._schema.name}.{target._overloadname}"
        _check_allowed(name, custom_ops)
        return name
    if isinstance(target, torch._ops.HigherOrderOperator) and target._name in _CONTROL_FLOW:
        return f"control::{target._name}"
    try:
        return _FUNCTION_NAMES[target]  # type: ignore[index]
    except (KeyError, TypeError):
        raise OperatorMismatchError(f"a program cannot call {target!r}") from None


def operator_schema(name: str, custom_ops: Collection[str] = ()) -> str:
    """Returns the running torch's schema of an operator; empty for a Python function."""
    target = _lookup(name, custom_ops)
    return str(target._schema) if isinstance(target, torch._ops.OpOverload) else ""


def resolve_operator(
    name: str, schema: str, custom_ops: Collection[str] = ()
) -> Callable[..., Any]:
    """Returns what a program calls by a name.

    Args:
      name: as `operator_name` gave it.
      schema: the operator's schema when the program was written.
      custom_ops: namespaces, beside torch's own, whose operators programs may call.

    Raises:
      OperatorMismatchError: it is not allowed, this torch does not have it, or its schema here
        would not accept the same calls.
    """
    target = _lookup(name, custom_ops)
    if isinstance(target, torch._ops.OpOverload) and str(target._schema) != schema:
        _check_compatible(target, schema)
    return target


def subgraph_places(target: Callable[..., Any]) -> tuple[int, ...]:
    """Returns which arguments of an operator are the subgraphs that it runs.

    Args:
      target: as `resolve_operator` gave it.
    """
    if not isinstance(target, torch._ops.HigherOrderOperator):
        return ()
    return _CONTROL_FLOW[target._name]


# In torch's calls these are integers too, and one that stands for nothing ends the process.
_ENUMERATIONS: dict[str, type] = {
    "Device": torch.device,
    "Layout": torch.layout,
    "MemoryFormat": torch.memory_format,
    "ScalarType": torch.dtype,
}


def check_arguments(
    target: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> None:
    """Checks that a call of an operator has arguments that the operator has parameters for.

    Args:
      target: as `resolve_operator` gave it.
      arguments, keywords: of the call; values of the graph may stand for themselves.

    Raises:
      CorruptProgramError: there are too many or unknown ones, or a dtype, device, layout or memory
        format is something else.
    """
    if not isinstance(target, torch._ops.OpOverload):
        return
    parameters = _parameters(target)
    if len(arguments) > len(parameters) or not keywords.keys() <= parameters.keys():
        raise CorruptProgramError(f"a call of '{target}' has arguments that it does not take")
    given = {**dict(zip(parameters, arguments, strict=False)), **keywords}
    for name, value in given.items():
        wanted = parameters[name]
        if wanted is not None and value is not None and not isinstance(value, wanted):
            raise CorruptProgramError(
                f"a call of '{target}' has {value!r} as its {name}, which must be a "
                f"{wanted.__name__}"
            )


@functools.cache
def _parameters(target: torch._ops.OpOverload) -> dict[str, type | None]:
    """Returns the parameters of an operator in order; the type of those that must be of one."""
    return {
        item.name: _ENUMERATIONS.get(str(item.real_type).removeprefix("Optional[").rstrip("]?"))
        for item in target._schema.arguments
    }


def _check_allowed(name: str, custom_ops: Collection[str]) -> tuple[str, str, str]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise OperatorMismatchError(f"{name!r} is not the name of an operator")
    namespace, base, overload = match.groups()
    allowed = {*_NAMESPACES, *custom_ops}
    if namespace not in allowed or f"{namespace}::{base}" in _REFUSED:
        raise OperatorMismatchError(
            f"operator '{name}' may not be called by a program; allowed are the namespaces "
            f"{', '.join(sorted(allowed))} without {', '.join(sorted(_REFUSED))}. If the program "
            f"was exported with custom operators, load it with custom_ops=['{namespace}'], after "
            "importing the library that registers them (a server: --custom-ops=MODULE)"
        )
    return namespace, base, overload


def _lookup(name: str, custom_ops: Collection[str]) -> Callable[..., Any]:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, base = name.partition("::")
    if namespace == "control" and base in _CONTROL_FLOW:
        # Registers them; a program without control flow need not wait for it.
        importlib.import_module("torch._higher_order_ops")

        control: Callable[..., Any] = getattr(torch.ops.higher_order, base)
        return control
    namespace, base, overload = _check_allowed(name, custom_ops)
    packet = getattr(getattr(torch.ops, namespace), base, None)
    target = getattr(packet, overload, None)
    if not isinstance(target, torch._ops.OpOverload):
        raise OperatorMismatchError(
            f"operator '{name}' does not exist in torch {torch.__version__}; use the torch that "
            "the program names as its producer, or export it again"
        )
    # TorchScript has operators of its own in the same namespaces, on strings, dicts and files
    # (aten::save); tracing never gives one.
    if not torch._C._dispatch_has_kernel(name.removesuffix(".default")):
        raise OperatorMismatchError(f"operator '{name}' is of TorchScript, not of torch's tensors")
    return target


def _check_compatible(target: torch._ops.OpOverload, written: str) -> None:
    try:
        if len(written) > _MAXIMUM_SCHEMA:
            raise ValueError(f"it has {len(written)} characters")
        old = torch._C.parse_schema(written)
    # It says some things in broken UTF-8, and of numbers that are too large that an index is.
    except (RuntimeError, ValueError, IndexError) as error:
        raise OperatorMismatchError(
            f"the recorded schema of '{target._schema.name}' cannot be read: "
            f"{written[:_MAXIMUM_SCHEMA]!r}; export the program again"
        ) from error
    if not target._schema.is_backward_compatible_with(old):  # type: ignore[attr-defined]
        raise OperatorMismatchError(
            f"operator '{target._schema.name}' has changed: the program was written for "
            f"'{written}', torch {torch.__version__} has '{target._schema}'. Use the torch that "
            "the program names as its producer, or export it again"
        )
