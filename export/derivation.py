"""Derives the contract of a captured graph from what was declared and what tracing relied on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._sympy.functions import FloatTrueDiv, IntTrueDiv, ToFloat, TruncToInt

from slipway.export.capture import Capture, Guard
from slipway.export.containers import tree_of
from slipway.export.dimensions import Declarations, ExampleCall
from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.narrowing import Narrowing, Verdict, examine
from slipway.export.spec_types import require_name
from slipway.export.symbol_table import SymbolTable
from slipway.export.symbolic import InexpressibleError, to_condition, to_expression
from slipway.export.unchecked import unchecked_guards
from slipway.program.contract import (
    Contract,
    InputSpec,
    OutputSpec,
    PythonValue,
    Relation,
    UnboundSymbolError,
)
from slipway.program.expressions import Condition, Constant, SymbolReference
from slipway.program.sizes import SizeError, interval_of
from slipway.program.torch_types import is_fresh
from slipway.program.trees import Tree
from slipway.program.words import counted, type_of

__all__ = ["Derivation", "derive"]

_SHOWN_CHARACTERS = 100
"""How long what int() was called with may be to be shown: the line of the model has it too."""


@dataclass(frozen=True, slots=True)
class Derivation:
    """A contract, and what is still open about it.

    Attributes:
      contract: with every relation that tracing relied on and that is not always true.
      table: what torch's symbols are in terms of the contract's.
      narrowings: of the relations that make the contract narrower than was declared.
      hinted: the relations that are bounds given to an inferred size, and so are needed anyway.
    """

    contract: Contract
    table: SymbolTable
    narrowings: Mapping[Relation, Narrowing]
    hinted: frozenset[Relation]


def derive(
    capture: Capture,
    call: ExampleCall,
    declared: Declarations,
    output_names: Sequence[str] | None,
    method: str,
) -> Derivation:
    """Returns the contract under which a captured graph is valid.

    Args:
      capture: the graph and its guards.
      call: the example.
      declared: what the user declared.
      output_names: names for the leaves of the output, or None for the default ones.
      method: the method's name.

    Raises:
      ExportError: the graph relies on something that no contract can say.
    """
    exported = capture.exported
    output_tree = tree_of(exported.call_spec.out_spec, "the output")
    symbolic = iter(_symbolic_tensors(capture))
    leaves = {
        name: next(symbolic) if isinstance(leaf, torch.Tensor) else leaf
        for name, leaf in call.leaves
    }
    table = SymbolTable(capture)
    for name, leaf in leaves.items():
        if isinstance(leaf, torch.Tensor):
            table.declare(name, leaf, declared.dimensions[name])
    table.infer_all()
    inputs = tuple(
        InputSpec(name, tensor=table.tensor_spec(leaf, name))
        if isinstance(leaf, torch.Tensor)
        else InputSpec(name, constant=_plain_value(leaf))
        for name, leaf in leaves.items()
    )
    outputs = _outputs(capture, output_tree, output_names, table)
    for name in leaves:
        require_name("an input", name)
    for output in outputs:
        require_name("an output", output.name)
    stated = declared.conditions(table.symbols)
    relations: dict[Relation, Narrowing | None] = {Relation(item): None for item in stated}
    bounds = {str(relation) for relation, _ in _relations([*table.hinted_bounds()], table, stated)}
    guards = [*capture.guards, *unchecked_guards(capture), *table.hinted_bounds()]
    relations |= _relations(guards, table, stated)
    try:
        contract = Contract(
            method=method,
            symbols=tuple(table.symbols),
            inputs=inputs,
            input_tree=call.tree,
            parameters=call.parameters,
            outputs=outputs,
            output_tree=output_tree,
            relations=tuple(relations),
            contiguous=_requires_contiguous(capture, call),
        )
    except UnboundSymbolError as error:
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            str(error),
            "declare a dimension that is the symbol itself, or linear in it",
        ) from error
    narrowings = {relation: error for relation, error in relations.items() if error is not None}
    hinted = frozenset(relation for relation in relations if str(relation) in bounds)
    return Derivation(_with_batch_symbol(contract), table, narrowings, hinted)


def _requires_contiguous(capture: Capture, call: ExampleCall) -> bool:
    """Returns whether the graph is valid only for tensors that lie in memory as the example's.

    Raises:
      ExportError: these do not lie as fresh ones do, which is all that a contract can say.
    """
    if capture.layout_source is None:
        return False
    for name, leaf in call.leaves:
        if isinstance(leaf, torch.Tensor) and not is_fresh(leaf):
            raise ExportError(
                ExportErrorKind.INVALID_SPEC,
                f"the model asks how a tensor lies in memory, and the example's '{name}' has the "
                f"strides {leaf.stride()}",
                f"give a contiguous example ({name}.contiguous()), or do not ask",
                capture.layout_source,
            )
    return True


def _symbolic_tensors(capture: Capture) -> Iterator[torch.Tensor]:
    """Yields the call's tensors with the symbolic shapes that they were traced with."""
    placeholders = {node.name: node for node in capture.exported.graph.nodes}
    for spec in capture.exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            yield placeholders[spec.arg.name].meta["val"]


def _plain_value(value: Any) -> PythonValue:
    assert isinstance(value, bool | int | float | str | None)  # `declare` refuses others
    return value


def _outputs(
    capture: Capture, tree: Tree, names: Sequence[str] | None, table: SymbolTable
) -> tuple[OutputSpec, ...]:
    paths = list(tree.leaf_paths())
    if names is None:
        names = [_output_name(path) for path in paths]
    if len(names) != len(paths) or len(set(names)) != len(names) or not all(names):
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the output names are {list(names)}; the model has {counted(len(paths), 'output')}",
            "give each output a name of its own in output_names",
        )
    (output,) = (node for node in capture.exported.graph.nodes if node.op == "output")
    values = output.args[0]
    specs = capture.exported.graph_signature.output_specs
    leaves = [
        value
        for spec, value in zip(specs, values, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    return tuple(
        _output_spec(name, value, table) for name, value in zip(names, leaves, strict=True)
    )


def _output_spec(name: str, value: Any, table: SymbolTable) -> OutputSpec:
    if not isinstance(value, torch.fx.Node):
        if not isinstance(value, bool | int | float | str | None):
            raise ExportError(
                ExportErrorKind.INVALID_SPEC,
                f"output '{name}' is {type_of(value)}",
                "return tensors, or values of the types None, bool, int, float and str",
            )
        return OutputSpec(name, constant=value)
    result = value.meta["val"]
    if isinstance(result, torch.Tensor):
        return OutputSpec(name, tensor=table.tensor_spec(result, name))
    if isinstance(result, int | torch.SymInt):
        return OutputSpec(name, integer=table.size(result))
    raise ExportError(
        ExportErrorKind.INVALID_SPEC,
        f"output '{name}' is a number that depends on the inputs' values or shapes",
        "return it as a tensor",
    )


def _output_name(path: tuple[str | int, ...]) -> str:
    if not path:
        return "output"
    first, *rest = path
    head = first if isinstance(first, str) else f"output_{first}"
    return ".".join(map(str, (head, *rest)))


def _relations(
    guards: Sequence[Guard], table: SymbolTable, stated: Sequence[Condition]
) -> Iterator[tuple[Relation, Narrowing | None]]:
    """Yields the relations, each with how it narrows what was declared, if it does."""
    seen: set[str] = set()
    for guard, condition in _conditions(guards, table):
        if condition == sympy.true or not condition.free_symbols <= set(table.index):
            continue  # always so, or about data: then the graph itself asserts it
        try:
            converted = to_condition(condition, table.index)
        except InexpressibleError as error:
            raise _inexpressible(condition, guard) from error
        if str(converted) in seen:
            continue
        seen.add(str(converted))
        verdict = examine(condition, converted, table.symbols, table.index, stated)
        if verdict.kind is Verdict.Kind.ALWAYS:
            continue
        narrowing = None
        if not condition.free_symbols & table.inferred:
            narrowing = Narrowing(converted, verdict.counterexample, guard.source, guard.plain)
        yield Relation(converted, "" if guard.source is None else str(guard.source)), narrowing


def _inexpressible(condition: sympy.Basic, guard: Guard) -> ExportError:
    needed = str(condition)
    advice = "compute sizes with +, -, *, //, %, min and max only"
    match condition:
        case sympy.Eq(args=(TruncToInt(args=(number,)), sympy.Integer() as rounded)):
            number = number.replace(ToFloat, lambda size: size)
            text = str(number)
            needed = f"int({text if len(text) <= _SHOWN_CHARACTERS else '…'}) == {rounded}"
            advice = (
                "write math.trunc() in place of int(), which gives a plain number: the example's"
            )
            whole = all(float(value).is_integer() for value in number.atoms(sympy.Float))
            if whole and number.has(FloatTrueDiv, IntTrueDiv):
                advice = (
                    "divide once, with // and without int(), which gives a plain number, the "
                    "example's: rows * 16 // (height * width) for int(rows / (height * width / 16))"
                )
        case sympy.Eq(args=(number, sympy.Float() as value)) if (
            guard.source is not None and re.search(r"\b(?:float|math\.\w+)\(", guard.source.text)
        ):
            needed = f"float({number}) == {float(value):g}"
            advice = (
                "compute without float() and math.sqrt() and the like, which give plain numbers: "
                "the example's (x ** 0.5 is a square root)"
            )
    reason = f"the model relies on {needed}, which a contract cannot say"
    return ExportError(ExportErrorKind.CONSTRAINT_VIOLATION, reason, advice, guard.source)


def _without_fractions(condition: sympy.Basic, table: SymbolTable) -> sympy.Basic:
    """Returns a comparison of a number that Python made of a size as one of whole numbers.

    Roots and logarithms compare what they are taken of with 0: `(rows - 1) ** 0.5`.
    """
    match condition:
        case sympy.Rel(args=(ToFloat(args=(size,)), sympy.Number() as bound)) if float(
            bound
        ).is_integer():
            return condition.func(size, sympy.Integer(bound))
        case sympy.Rel(
            args=(IntTrueDiv(args=(size, divisor)), sympy.Number(is_zero=True) as zero)
        ) if divisor.is_positive or _is_positive(divisor, table):
            return condition.func(size, sympy.Integer(zero))
        case _:
            return condition


def _without_common_sizes(condition: sympy.Basic, table: SymbolTable) -> sympy.Basic:
    """Returns a comparison of products without the sizes that both have, if these are never 0.

    `width < height * width`, as strides are compared, is about one size: few are excluded then.
    """
    if not isinstance(condition, sympy.Rel):
        return condition
    left, right = (sympy.Mul.make_args(side) for side in condition.args)
    common = [size for size in left if size in right and _is_positive(size, table)]
    if not common:
        return condition
    numbers = (side.as_coeff_Mul()[0] for side in condition.args)
    factor = sympy.Mul(sympy.gcd(*numbers), *common)
    return condition.func(*(side / factor for side in condition.args))


def _is_positive(size: sympy.Basic, table: SymbolTable) -> bool:
    """Returns whether a part of a product has symbols, and is more than 0 for all they may be."""
    if not size.free_symbols or not size.free_symbols <= set(table.index):
        return False
    ranges = [(item.minimum, item.maximum or math.inf) for item in table.symbols]
    try:
        return interval_of(to_expression(size, table.index), ranges)[0] > 0
    except (InexpressibleError, SizeError):
        return False


def _conditions(guards: Sequence[Guard], table: SymbolTable) -> Iterator[tuple[Guard, sympy.Basic]]:
    """Yields what the guards say of the contract's symbols, each statement for itself."""
    for guard in guards:
        condition = _without_fractions(guard.condition.xreplace(table.meaning), table)
        condition = _without_common_sizes(condition, table)
        match condition:
            case sympy.Ne(args=(sympy.Mul() as product, sympy.Integer(is_zero=True))):
                # Of one symbol each, so that whether the graph needs it can be found out.
                for factor in product.args:
                    yield guard, sympy.Ne(factor, 0)
            case sympy.And():
                for part in sorted(condition.args, key=str):
                    yield guard, part
            case sympy.Rel() if _excludes_0_and_1(condition, table):
                # One by one, since a graph that is not valid for 0 may still be for 1.
                (symbol,) = condition.free_symbols
                yield guard, sympy.Ne(symbol, 0)
                yield guard, sympy.Ne(symbol, 1)
            case _:
                yield guard, condition


def _excludes_0_and_1(condition: sympy.Rel, table: SymbolTable) -> bool:
    """Returns whether a comparison says that a symbol, which may be 0, is at least 2."""
    match condition.canonical:
        case sympy.GreaterThan(args=(sympy.Symbol() as symbol, sympy.Integer() as bound)):
            least = int(bound)
        case sympy.StrictGreaterThan(args=(sympy.Symbol() as symbol, sympy.Integer() as bound)):
            least = int(bound) + 1
        case _:
            return False
    place = table.index.get(symbol)
    return least == 2 and place is not None and table.symbols[place].minimum == 0


def _with_batch_symbol(contract: Contract) -> Contract:
    """Marks the symbol that is the first dimension of every tensor, if there is one."""
    firsts = set()
    for spec in (*contract.tensor_inputs.values(), *contract.tensor_outputs.values()):
        size = spec.shape[0] if spec.shape else Constant(0)
        firsts.add(size.index if isinstance(size, SymbolReference) else None)
        if any(isinstance(other, SymbolReference) and other == size for other in spec.shape[1:]):
            return contract
    (first, *others) = firsts or {None}
    return contract if others or first is None else replace(contract, batch_symbol=first)
