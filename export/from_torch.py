"""From torch's exported programs, and the archives that they are saved in, to programs.

The graph is traced once more, and from there everything is as it is for a model: the contract is
derived, the program is compared with torch's. What tracing the graph cannot show, since it is gone
from it, is taken from what torch keeps beside it: the ranges of its symbols, and its guards.
"""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.utils import _pytree as pytree

from slipway.export.api import assemble, run_example
from slipway.export.assertions import describe_assertions
from slipway.export.dimensions import (
    Declarations,
    Declared,
    ExampleCall,
    Static,
    bind_example,
    check_example,
)
from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.guard_text import GuardReader
from slipway.export.models import restoring_containers
from slipway.export.resizing import binding_of
from slipway.export.symbolic import InexpressibleError, to_expression
from slipway.export.tracing import Tracer, settle
from slipway.export.translation import quiet_torch
from slipway.program.contract import DEFAULT_METHOD, Contract, Symbol
from slipway.program.errors import ContractViolation
from slipway.program.expressions import (
    Comparison,
    Constant,
    Expression,
    Modulo,
    Multiply,
    SymbolReference,
    linear_form,
)
from slipway.program.implication import Answer, Domain
from slipway.program.program import Program
from slipway.program.substitution import substituted, substituted_condition
from slipway.program.words import counted, type_of, with_article

__all__ = ["from_exported_program", "from_pt2"]

_CASES = 3

_LEAST_TRACED = 2
"""Torch takes every dynamic size to be at least this while it traces, whatever was declared."""


def from_pt2(
    path: str | os.PathLike[str],
    args: torch.Tensor | tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Program:
    """Makes a program of an archive that `torch.export.save` wrote.

    Only for archives that you trust: torch's own loader reads them, which unpickles, and so can be
    made to run whatever the archive's author likes. A program that is made once is safe to load.

    Args:
      path: of the `.pt2` file.
      args, kwargs, **options: as for `from_exported_program`.

    Raises:
      ExportError: torch cannot load it, or as `from_exported_program` says.
    """
    try:
        with quiet_torch():
            exported = torch.export.load(os.fspath(path))
    except Exception as error:
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"torch cannot load {os.fspath(path)}",
            "give a file that torch.export.save wrote, of this release of torch; what it uses "
            "beside torch, such as custom operators and dataclasses, must have been imported",
            cause=" ".join(f"{type(error).__name__}: {error}".split()),
        ) from error
    return from_exported_program(exported, args, kwargs, **options)


def from_exported_program(
    exported: ExportedProgram,
    args: torch.Tensor | tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    symbol_names: Mapping[str, str] | None = None,
    output_names: Sequence[str] | None = None,
    custom_ops: Collection[str] = (),
    cases: int = _CASES,
) -> Program:
    """Makes a program of what `torch.export.export` returned.

    Its contract lets in what torch's ranges and guards and the graph itself let in together. What
    torch does not keep of a model, no contract can say: that it asked for the strides of an input,
    and took another branch.

    Args:
      exported: torch's program; its tensors on the CPU.
      args, kwargs: an example call, where it has not kept its own.
      symbol_names: better names for symbols. Torch keeps none, so each is called by the first
        dimension that it is, `x_0`: `{"x_0": "batch"}`.
      output_names: as in `MethodSpec`.
      custom_ops, cases: as in `ExportSpec`.

    Raises:
      ExportError: it has something in it that a program cannot hold, or the example is missing or
        does not fit.
    """
    args, kwargs = _example(exported, args, kwargs)
    module: torch.nn.Module = exported.module(check_guards=False)
    call = bind_example(module.forward, args, kwargs)
    _require_on_cpu(exported)
    described = _describe(exported, call, symbol_names or {})
    check_example(call, described.dimensions)
    module = restoring_containers(module, args, kwargs)
    run_example(module, args, kwargs)
    tracer = Tracer(module, output_names, DEFAULT_METHOD, False, alone=True)
    traced = tracer.trace(args, kwargs, described)
    # What the graph needs beyond what torch says of it is no mistake of whoever exported it.
    derivation = replace(traced.derivation, narrowings={})
    describe_assertions(traced.capture.exported.graph, derivation.table)
    derivation.table.inferred.update(derivation.table.index)
    traced = replace(traced, derivation=derivation)
    contract = _without_consequences(settle(tracer, traced))
    try:
        binding_of(contract, traced.example)
    except ContractViolation as error:
        raise _invalid(
            f"the exported program does not take the example: {error}", "give another example"
        ) from error
    contract = replace(contract, notes=(*contract.notes, *_doubts(contract)))
    return assemble({DEFAULT_METHOD: traced}, {DEFAULT_METHOD: contract}, tuple(custom_ops), cases)


def _doubts(contract: Contract) -> Iterator[str]:
    """Yields what of a contract rests on torch's word alone, for people to read."""
    for symbol in contract.symbols:
        if symbol.minimum < _LEAST_TRACED:
            small = [size for size in range(symbol.minimum, _LEAST_TRACED)]
            yield (
                f"{symbol.name} may be {' or '.join(map(str, small))}, since torch says so; torch "
                "traces as though it were more, and keeps no trace of a branch on such a size"
            )


def _invalid(reason: str, advice: str) -> ExportError:
    return ExportError(ExportErrorKind.INVALID_SPEC, reason, advice)


def _example(
    exported: ExportedProgram,
    args: torch.Tensor | tuple[Any, ...] | None,
    kwargs: Mapping[str, Any] | None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns an example call, put together in the order in which the graph takes its parts."""
    if args is None and kwargs is None:
        if exported.example_inputs is None:
            raise _invalid(
                "the exported program has no example inputs", "give an example: args and kwargs"
            )
        args, kwargs = exported.example_inputs
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args or ())
    structure = exported.call_spec.in_spec
    assert structure is not None
    try:
        _, keyword_structure = structure.children()
        ordered = {name: (kwargs or {})[name] for name in keyword_structure.context}
        if unknown := set(kwargs or {}) - set(ordered):
            raise ValueError(f"there are no arguments {', '.join(sorted(unknown))}")
        leaves = structure.flatten_up_to((args, ordered))
    except (KeyError, ValueError) as error:
        raise _invalid(
            f"the exported program is called otherwise than the example: {error}",
            f"give args and kwargs that are nested as {structure}",
        ) from error
    call: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(leaves, structure)
    return call


def _require_on_cpu(exported: ExportedProgram) -> None:
    for name, value in {**exported.state_dict, **exported.constants}.items():
        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            raise _invalid(
                f"the exported program's '{name}' is on {value.device}",
                "move it: torch.export.passes.move_to_device_pass(exported, 'cpu')",
            )


def _describe(
    exported: ExportedProgram, call: ExampleCall, symbol_names: Mapping[str, str]
) -> Declarations:
    """Returns what torch keeps of an exported program's inputs. Raises: ExportError."""
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    inputs = [
        spec for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT
    ]
    for spec in exported.graph_signature.input_specs:
        if spec.kind in (InputKind.CUSTOM_OBJ, InputKind.TOKEN):
            raise _invalid(
                f"the exported program has {with_article(spec.kind.name.lower())} as an input",
                "use tensors and plain values",
            )
    if len(inputs) != len(call.leaves):
        raise _invalid(
            f"the exported program has {counted(len(inputs), 'input')}, the example "
            f"{len(call.leaves)}",
            "give another example",
        )
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, int] = {}
    for spec, (name, value) in zip(inputs, call.leaves, strict=True):
        _require_same_kind(spec.arg, name, value)
        if isinstance(value, torch.Tensor):
            tensors[name] = placeholders[spec.arg.name].meta["val"]
            _require_fits(tensors[name], name, value)
        elif isinstance(value, int):
            values[name] = value
    sizes = {name: [_expression(size) for size in item.shape] for name, item in tensors.items()}
    bounds = {
        size: (max(0, _integer(given.lower) or 0), _integer(given.upper))
        for size, given in exported.range_constraints.items()
    }
    plain = {size for shape in sizes.values() for size in shape if size.is_Symbol}
    parts = set().union(*(size.free_symbols for size in bounds)) - plain
    for raw in sorted(parts, key=str):
        bounds[raw] = _range_of_part(raw, bounds)
    names = _names(sizes, symbol_names)
    described = _Shapes(
        {raw: Symbol(name, *bounds.get(raw, (0, None))) for raw, name in names.items()}
    )
    dimensions = {
        name: tuple(
            described.take(f"{name}_{place}", size, bounds.get(size, (0, None)))
            for place, size in enumerate(shape)
        )
        for name, shape in sizes.items()
    }
    leaves = [name for name, _ in call.leaves]
    texts = {name: [described.text(size) for size in shape] for name, shape in sizes.items()}
    symbols = [item.name for item in described.symbols]
    reader = GuardReader(symbols, texts, leaves, values)
    guards = [reader.relation(guard) for guard in exported._guards_code]
    return Declarations(dimensions, (*described.conditions(bounds), *guards))


def _integer(bound: sympy.Basic) -> int | None:
    return int(bound) if isinstance(bound, sympy.Integer) else None


def _expression(size: int | torch.SymInt) -> sympy.Basic:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _range_of_part(
    part: sympy.Symbol, bounds: Mapping[sympy.Basic, tuple[int, int | None]]
) -> tuple[int, int | None]:
    """Returns the range of a symbol that is no dimension, as the sizes derived from it have it.

    Torch's own range of such a symbol is what it traces with, and not what was declared.
    """
    lows, highs = [], []
    for size, (least, most) in bounds.items():
        factor, offset = size.coeff(part, 1), size.coeff(part, 0)
        if size != part and factor.is_Integer and factor > 0 and size == factor * part + offset:
            lows.append(-((int(offset) - least) // int(factor)))
            highs += [] if most is None else [(most - int(offset)) // int(factor)]
    if not lows:
        return bounds.get(part, (0, None))
    return max(0, *lows), min(highs, default=None)


def _names(
    sizes: Mapping[str, Sequence[sympy.Basic]], better: Mapping[str, str]
) -> dict[sympy.Symbol, str]:
    """Returns a name for each of torch's symbols.

    A symbol is called by a dimension that it is, or else by one that is derived from it.

    Raises:
      ExportError: `better` names other symbols, or gives names that cannot be.
    """
    named: dict[sympy.Symbol, str] = {}
    for plain in (True, False):
        for name, shape in sizes.items():
            for place, size in enumerate(shape):
                for raw in sorted(size.free_symbols - set(named), key=str):
                    if (size == raw) is plain:
                        stem = f"{name}_{place}" if plain else f"{name}_{place}_part"
                        named[raw] = _unique(stem, named.values())
    if unknown := set(better) - set(named.values()):
        raise _invalid(
            f"symbol_names has {', '.join(sorted(unknown))}, which no symbol is called",
            f"the symbols are {', '.join(named.values()) or 'none'}",
        )
    renamed = {raw: better.get(name, name) for raw, name in named.items()}
    chosen = list(renamed.values())
    for name in chosen:
        if not name.isidentifier() or keyword.iskeyword(name) or chosen.count(name) > 1:
            raise _invalid(
                f"symbol_names makes the symbols {', '.join(chosen)}",
                "give each a name of its own, of letters, digits and _",
            )
    return renamed


def _unique(stem: str, taken: Collection[str]) -> str:
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    while name in taken:
        name += "_"
    return name


class _Shapes:
    """Sizes of torch's in the symbols of a contract."""

    def __init__(self, known: Mapping[sympy.Symbol, Symbol]) -> None:
        """Takes what each of torch's symbols is called, with its range."""
        self.symbols = list(known.values())
        self._by_name = {item.name: item for item in self.symbols}
        self._meaning = {
            raw: sympy.Symbol(item.name, integer=True, nonnegative=True)
            for raw, item in known.items()
        }
        self._index = {symbol: place for place, symbol in enumerate(self._meaning.values())}
        self._equalities: list[str] = []

    def take(
        self, stem: str, size: sympy.Basic, bounds: tuple[int, int | None]
    ) -> Declared | Static:
        """Returns what a dimension is.

        One that is not linear in one symbol gets a symbol of its own, called by `stem`, with a
        relation that says what it is.
        """
        if size.is_Integer:
            return Static()
        form = linear_form(self._convert(size))
        if form is not None and form[0] > 0:
            return Declared(self._by_name[form[1].name], form[0], form[2])
        own = Symbol(_unique(stem, self._by_name), *bounds)
        self.symbols.append(own)
        self._by_name[own.name] = own
        self._equalities.append(f"{own.name} == {self.text(size)}")
        return Declared(own, 1, 0)

    def text(self, size: sympy.Basic) -> str:
        """Returns a size as a text over the contract's symbols. Raises: ExportError."""
        return str(self._convert(size))

    def conditions(self, bounds: Mapping[sympy.Basic, tuple[int, int | None]]) -> Iterator[str]:
        """Yields what is known of sizes beyond the ranges of symbols."""
        yield from self._equalities
        for size, (low, high) in bounds.items():
            if size.free_symbols <= set(self._meaning):
                yield f"{self.text(size)} >= {low}"
                if high is not None:
                    yield f"{self.text(size)} <= {high}"

    def _convert(self, size: sympy.Basic) -> Expression:
        try:
            return to_expression(size.xreplace(self._meaning), self._index)
        except InexpressibleError as error:
            raise ExportError(
                ExportErrorKind.CONSTRAINT_VIOLATION,
                f"an input of the exported program has the size {size}, which no contract can say",
                "export the model with slipway.export",
            ) from error


def _without_consequences(contract: Contract) -> Contract:
    """Returns a contract without relations that follow from its ranges and the relations before.

    Torch has many that follow. Most are about multiples, so a symbol that must be a multiple of a
    number is replaced by how many times that number it is.
    """
    names = {
        place: SymbolReference(place, item.name) for place, item in enumerate(contract.symbols)
    }
    parts: dict[int, Expression] = dict(names)
    domain = Domain(contract.symbols)
    kept = []
    for relation in contract.relations:
        condition = substituted_condition(relation.condition, parts)
        if domain.examine(condition).answer is Answer.ALWAYS:
            continue
        kept.append(relation)
        match condition:
            case Comparison(
                "==", Modulo(SymbolReference(index, name), Constant(number)), Constant(0)
            ) if number > 1:
                multiple = Multiply((Constant(number), SymbolReference(index, name)))
                place = {**names, index: multiple}
                parts = {key: substituted(part, place) for key, part in parts.items()}
                assumptions = (substituted_condition(item, place) for item in domain.assumptions)
                symbols = list(domain.symbols)
                low, high = symbols[index].minimum, symbols[index].maximum
                symbols[index] = Symbol(
                    name, -(-low // number), None if high is None else high // number
                )
                domain = Domain(tuple(symbols), tuple(assumptions))
            case _:
                domain = domain.given(condition)
    return replace(contract, relations=tuple(kept))


def _require_same_kind(argument: Any, name: str, value: Any) -> None:
    if isinstance(argument, TensorArgument) and isinstance(value, torch.Tensor):
        return
    if isinstance(argument, ConstantArgument):
        same = value == argument.value or (value != value and argument.value != argument.value)
        if type(value) is not type(argument.value) or not same:
            raise _invalid(
                f"the exported program was made for {name} = {argument.value!r}, and for no other",
                "give an example with that value",
            )
        return
    raise _invalid(
        f"the exported program takes {name} as "
        f"{with_article(type(argument).__name__.removesuffix('Argument'))}, the example has "
        f"{type_of(value)}",
        "a program takes tensors, and values of Python that are always the same: export it with "
        "the number fixed, or given as a tensor",
    )


def _require_fits(traced: torch.Tensor, name: str, value: torch.Tensor) -> None:
    if traced.dtype != value.dtype or traced.dim() != value.dim():
        raise _invalid(
            f"the exported program takes '{name}' as {traced.dtype} of rank {traced.dim()}; the "
            f"example's is {value.dtype} of rank {value.dim()}",
            "give another example",
        )
    for dimension, (size, actual) in enumerate(zip(traced.shape, value.shape, strict=True)):
        if isinstance(size, int) and size != actual:
            raise _invalid(
                f"the exported program takes '{name}' with {size} as dimension {dimension}; the "
                f"example's is {actual}",
                "give another example",
            )
