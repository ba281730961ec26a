"""Finds out whether calls can be joined: whether the rows of a batch are independent of each other.

The symbol is read off the contract. That each row of a batch gives what it gives alone is tried on
the program as it is read from its protobuf form: on batches of several sizes, with rows in several
orders, for several sizes of the other dimensions, and with rows replaced by not-a-number, infinity
and large values, which must not show in any other row. That is evidence, no proof: what is kept in
the program says how much was tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.independence import Trial
from slipway.export.padding import PaddingTrial, padding_of
from slipway.export.resizing import without_empty_tensors
from slipway.export.rows import Tolerance
from slipway.export.spec import MethodSpec
from slipway.program.batching import (
    Batching,
    PaddingNumber,
    batch_dimension,
    batching_problem,
    padding_problem,
)
from slipway.program.cases import TOLERANCES
from slipway.program.contract import Contract
from slipway.program.method import Method
from slipway.program.mutation import possibly_mutated_inputs
from slipway.program.program import Program
from slipway.program.torch_types import from_torch

__all__ = ["find_batching"]


def find_batching(
    program: Program, name: str, example: Sequence[object], wanted: MethodSpec
) -> Batching | str | None:
    """Returns how calls of a method can be joined, or why they cannot; None if nothing suggests it.

    Args:
      program: made from its protobuf form.
      name: of the method.
      example: the leaves of the example call.
      wanted: what its user says of batching.

    Raises:
      ExportError: the user names a symbol, or gives values for padding, and calls cannot be joined.
    """
    method = program.methods[name]
    required = bool(wanted.padding) or isinstance(wanted.batching, str)
    if wanted.batching is False:
        if required:
            raise _refusal(
                "the spec has values for padding, and forbids batching", "give one of them"
            )
        return None
    symbol = _symbol(method.contract, wanted)
    if symbol is None:
        if required:
            raise _refusal(
                "the spec has values for padding, and no symbol is the first dimension of every "
                "input and output",
                "name the symbol that counts the rows: batching=…",
            )
        return None
    label = method.contract.symbols[symbol].name
    example = without_empty_tensors(method.contract, example)
    found = _try(program, method, symbol, example, wanted)
    if isinstance(found, Batching):
        return _with_padding(method, found, example, wanted.padding or {})
    if required:
        raise _refusal(
            f"calls of '{name}' cannot be joined over '{label}': {found}",
            "change the model so that every row is computed from that row alone; or leave out "
            "batching= and padding= of the spec",
        )
    return f"calls are not joined over '{label}': {found}"


def _refusal(reason: str, advice: str) -> ExportError:
    return ExportError(ExportErrorKind.INVALID_SPEC, reason, advice)


def _symbol(contract: Contract, wanted: MethodSpec) -> int | None:
    """Returns the index of the symbol that is named, or that is every tensor's first dimension."""
    if not isinstance(wanted.batching, str):
        return contract.batch_symbol
    names = [symbol.name for symbol in contract.symbols]
    if wanted.batching not in names:
        raise _refusal(
            f"the spec wants batching over '{wanted.batching}', which is no symbol of the contract",
            f"name one of {', '.join(names) or '(there are none)'}",
        )
    return names.index(wanted.batching)


def _try(
    program: Program,
    method: Method,
    symbol: int,
    example: Sequence[object],
    wanted: MethodSpec,
) -> Batching | str:
    contract = method.contract
    problem = batching_problem(contract, symbol) or _unsuitable(program, method)
    if problem is not None:
        return problem
    atol, rtol = wanted.batching_tolerance or _tolerance(program, contract)
    trial = Trial(method, symbol, example, Tolerance(atol, rtol))
    problem = trial.find_dependence()
    if problem is not None:
        return problem
    dimensions = {
        name: batch_dimension(spec, symbol) or 0 for name, spec in contract.tensor_inputs.items()
    }
    return Batching(
        contract.symbols[symbol].name,
        dimensions,
        tuple(batch_dimension(spec, symbol) or 0 for spec in contract.tensor_outputs.values()),
        atol=atol,
        rtol=rtol,
        evidence=trial.evidence,
    )


def _with_padding(
    method: Method,
    batching: Batching,
    example: Sequence[object],
    wanted: Mapping[str, Mapping[str, PaddingNumber]],
) -> Batching:
    contract = method.contract
    names = [symbol.name for symbol in contract.symbols]
    trial = PaddingTrial(method, batching, example)
    paddings = []
    for name, values in sorted(wanted.items()):
        if name not in names or name == batching.symbol:
            raise _refusal(
                f"the spec has values for padding along '{name}', which is no symbol of the "
                "contract other than the one that counts the rows",
                f"name one of {', '.join(names)}",
            )
        padding = padding_of(contract, name, values)
        problem = padding_problem(contract, names.index(name), padding.values)
        problem = problem or trial.problem([padding])
        if problem is not None:
            raise _refusal(
                f"inputs of '{contract.method}' cannot be padded along '{name}': {problem}",
                "give every input that has this dimension a value that the model takes for "
                "nothing, as false is in a mask; or leave the symbol out of padding=",
            )
        paddings.append(padding)
    problem = trial.problem(paddings) if len(paddings) > 1 else None
    if problem is not None:
        raise _refusal(
            f"inputs of '{contract.method}' cannot be padded along "
            f"{' and '.join(repr(padding.symbol) for padding in paddings)} at once: {problem}",
            "leave one of them out of padding=",
        )
    return replace(batching, paddings=tuple(paddings))


def _unsuitable(program: Program, method: Method) -> str | None:
    """Returns what of a graph forbids joining calls, whatever the results are."""
    if program.state:
        return f"calls change the state of the program: {', '.join(sorted(program.state))}"
    if possibly_mutated_inputs(method.graph_module.graph):
        return "calls change their own arguments"
    for module in method.graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if _draws(node):
                return f"it draws random numbers ({node.target})"
    return None


def _draws(node: torch.fx.Node) -> bool:
    """Returns whether a node draws random numbers, as dropout does only if its arguments say so."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    for place, parameter in enumerate(node.target._schema.arguments):
        default = node.kwargs.get(parameter.name, parameter.default_value)
        value = node.args[place] if place < len(node.args) else default
        if parameter.name in ("train", "training") and value is False:
            return False
        if parameter.name in ("p", "dropout", "dropout_p") and value == 0:
            return False
    return True


def _tolerance(program: Program, contract: Contract) -> tuple[float, float]:
    """Returns the tolerance, absolute and relative, of the least precise dtype that takes part."""
    dtypes = {
        spec.dtype for spec in (*contract.tensor_inputs.values(), *contract.tensor_outputs.values())
    }
    dtypes |= {from_torch(tensor.dtype) for tensor in program.weights.values()}
    known = [TOLERANCES[dtype] for dtype in dtypes if dtype in TOLERANCES]
    return max((atol for _, atol in known), default=0.0), max(
        (rtol for rtol, _ in known), default=0.0
    )
