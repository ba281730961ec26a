"""Whether a call is legal, in words: the binding and the outputs, or what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slipway.program.contract import Contract, TensorInputs
from slipway.program.errors import Violation
from slipway.program.expressions import Expression
from slipway.program.nearest_call import nearest_call

__all__ = ["CheckReport", "accepted", "refused"]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The answer, for people and for tools."""

    legal: bool
    text: str
    document: dict[str, Any]


def accepted(contract: Contract, binding: Sequence[int]) -> CheckReport:
    """Returns the answer to a legal call.

    Args:
      contract: of the method that is called.
      binding: the value of each symbol.
    """
    values = {symbol.name: value for symbol, value in zip(contract.symbols, binding, strict=True)}
    outputs = []
    shapes: dict[str, list[int | None]] = {}
    for spec in contract.outputs:
        if spec.tensor is not None:
            shapes[spec.name] = [_value(size, binding) for size in spec.tensor.shape]
            sizes = ", ".join("?" if size is None else str(size) for size in shapes[spec.name])
            outputs.append((spec.name, f"{spec.tensor.dtype.value}[{sizes}]"))
        elif spec.integer is not None:
            value = _value(spec.integer, binding)
            outputs.append((spec.name, "?" if value is None else str(value)))
        else:
            outputs.append((spec.name, repr(spec.constant)))
    lines = [f"legal: a call of {contract.method}"]
    lines += [f"  {name} = {value}" for name, value in values.items()]
    lines += [f"  gives {name}: {what}" for name, what in outputs]
    return CheckReport(
        True,
        "\n".join(lines),
        {"legal": True, "method": contract.method, "binding": values, "output_shapes": shapes},
    )


def _value(expression: Expression, binding: Sequence[int]) -> int | None:
    """Returns a size, or None where only running tells it."""
    try:
        return expression.evaluate(binding)
    except (ValueError, ZeroDivisionError):
        return None


def refused(
    contract: Contract, inputs: TensorInputs, violations: Sequence[Violation]
) -> CheckReport:
    """Returns the answer to a call that breaks a contract, with a legal one near it."""
    nearest = nearest_call(contract, inputs)
    lines = [f"refused: a call of {contract.method}"]
    lines += [f"  {violation.description}" for violation in violations]
    if nearest is None:
        lines.append("  no legal call was found near it")
    else:
        shapes = (f"{name}={','.join(map(str, shape))}" for name, shape in nearest.items())
        lines.append(f"nearest legal call: {' '.join(f'--shape {shape}' for shape in shapes)}")
    return CheckReport(
        False,
        "\n".join(lines),
        {
            "legal": False,
            "method": contract.method,
            "violations": [dataclasses.asdict(violation) for violation in violations],
            "nearest": nearest and {name: list(shape) for name, shape in nearest.items()},
        },
    )
