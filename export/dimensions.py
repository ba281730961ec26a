"""Reads `dynamic_shapes`: for each dimension of each example tensor, what the user declared."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch.export import AdditionalInputs, ShapesCollection
from torch.export.dynamic_shapes import Dim, _DerivedDim, _DimHint, _DimHintType, _StaticDim
from torch.utils import _pytree as pytree

from slipway.export.containers import tree_of
from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.shape_language import (
    SymbolRange,
    declared_symbols,
    parse_relation,
    parse_shape,
    range_condition,
)
from slipway.export.spec import MethodSpec
from slipway.program.contract import Symbol
from slipway.program.expressions import (
    Condition,
    Constant,
    Expression,
    SymbolReference,
    holds,
    linear_form,
)
from slipway.program.trees import Kind, Tree
from slipway.program.words import counted, type_of

__all__ = [
    "Declaration",
    "Declarations",
    "Declared",
    "ExampleCall",
    "Inferred",
    "Static",
    "bind_example",
    "check_example",
    "declare",
]


@dataclass(frozen=True, slots=True)
class Static:
    """A dimension that keeps the size it has in the example."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A dimension that is factor*symbol + offset, the symbol being declared by name and range."""

    symbol: Symbol
    factor: int
    offset: int

    def __str__(self) -> str:
        text = self.symbol.name if self.factor == 1 else f"{self.factor}*{self.symbol.name}"
        return f"{text} + {self.offset}".replace("+ -", "- ") if self.offset else text


@dataclass(frozen=True, slots=True)
class Inferred:
    """A dimension that is whatever tracing finds it to be.

    Attributes:
      minimum, maximum: bounds that the user gave; None for no upper bound.
      required: whether it is an error if tracing finds it to be static.
    """

    minimum: int
    maximum: int | None
    required: bool


Declaration = Static | Declared | Inferred


@dataclass(frozen=True, slots=True)
class ExampleCall:
    """The example arguments of a function, bound to its signature.

    Attributes:
      parameters: the names of the positional arguments.
        Those that go into `*args` are called args_0, args_1, …
      args, kwargs: the arguments.
      variadic: the names of the parameters that collect several arguments.
    """

    parameters: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    variadic: frozenset[str]

    @property
    def arguments(self) -> dict[str, Any]:
        """Returns every argument by name."""
        return {**dict(zip(self.parameters, self.args, strict=True)), **self.kwargs}

    @property
    def tree(self) -> Tree:
        """Returns how the call is put together: positional and keyword arguments."""
        return tree_of(
            pytree.tree_structure((self.args, dict(self.kwargs))), "the example arguments"
        )

    @property
    def leaves(self) -> list[tuple[str, Any]]:
        """Returns the leaves of all arguments, with their names: `inputs.0.mask`."""
        values = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [
            (self._leaf_name(path), value)
            for path, value in zip(self.tree.leaf_paths(), values, strict=True)
        ]

    def _leaf_name(self, path: tuple[str | int, ...]) -> str:
        place, name, *rest = path
        if place == 0:
            name = self.parameters[int(name)]
        return ".".join(map(str, (name, *rest)))

    def by_name(self, shapes: Mapping[str, Any] | Sequence[Any] | None) -> dict[str, Any]:
        """Returns what dynamic_shapes gives each argument, the variadic ones taken apart.

        Raises:
          ExportError: it names an argument that there is not.
        """
        if shapes is None:
            return {}
        if not isinstance(shapes, Mapping):
            if len(shapes) != len(self.arguments):
                _invalid(
                    f"dynamic_shapes has {counted(len(shapes), 'entry', 'entries')} for "
                    f"{counted(len(self.arguments), 'argument')}",
                    "give one for each argument, None for one that is static, or a dict by name",
                )
            return dict(zip(self.arguments, shapes, strict=True))
        result: dict[str, Any] = {}
        for name, value in shapes.items():
            if name in self.variadic and isinstance(value, Mapping):
                result.update(value)
            elif name in self.variadic and value is not None:
                result.update({f"{name}_{index}": item for index, item in enumerate(value)})
            else:
                result[name] = value
        if unknown := set(result) - set(self.arguments) - self.variadic:
            _invalid(
                f"dynamic_shapes names {_listed(unknown)}, but the arguments are "
                f"{_listed(self.arguments)}",
                "name the model's own parameters",
            )
        return result


_WRAP = "wrap it in a function: def model(x): return …"


def bind_example(
    f: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ExampleCall:
    """Returns the example call of a function.

    Raises:
      ExportError: the function does not take these arguments.
    """
    try:
        signature = inspect.signature(f)
    except ValueError:
        _invalid("the model is a built-in function, which names no parameters", _WRAP)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"the example arguments do not fit the signature {signature}: {error}",
            "give args and kwargs as the model is called; a single tensor may be given bare",
        ) from None
    names = []
    variadic = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            variadic.append(parameter.name)
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            names.append(parameter.name)
    names = names[: len(args)]
    names += [f"{variadic[0]}_{index}" for index in range(len(args) - len(names))]
    return ExampleCall(
        parameters=tuple(names),
        args=tuple(args),
        kwargs=dict(kwargs),
        variadic=frozenset(variadic),
    )


@dataclass(frozen=True, slots=True)
class Declarations:
    """What the user declared of a call.

    Attributes:
      dimensions: of each tensor, by its name: `inputs.0.mask`.
      relations: between symbols, as the user wrote them.
      ranges: of symbols by name, where they were given apart from the dimensions.
      fixed: symbols that stand for one value, because the model is traced at that value.
    """

    dimensions: Mapping[str, Sequence[Declaration]]
    relations: Sequence[str] = ()
    ranges: Mapping[str, SymbolRange] = field(default_factory=dict)
    fixed: Mapping[str, int] = field(default_factory=dict)

    def conditions(self, symbols: Sequence[Symbol]) -> list[Condition]:
        """Returns what was declared beside ranges, over the symbols of a contract.

        Raises:
          ExportError: a relation is not well formed, or names a symbol that there is not.
        """
        meaning: dict[str, Expression] = {
            item.name: SymbolReference(index, item.name) for index, item in enumerate(symbols)
        }
        meaning |= {name: Constant(value) for name, value in self.fixed.items()}
        sets = [
            range_condition(meaning[name], given)
            for name, given in self.ranges.items()
            if name in meaning
        ]
        stated = [parse_relation(text, meaning) for text in self.relations]
        return [item for item in (*sets, *stated) if item is not None]


def declare(call: ExampleCall, spec: MethodSpec) -> Declarations:
    """Returns what a spec declares of a call.

    Args:
      call: the example; a tensor in a container is named by its path: `inputs.0.mask`.
      spec: its dynamic shapes, symbols and relations.

    Raises:
      ExportError: they do not fit the arguments, or the example contradicts them.
    """
    ranges = dict(spec.symbols or {})
    symbols = declared_symbols(ranges)
    if isinstance(spec.dynamic_shapes, ShapesCollection | AdditionalInputs):
        by_name = _collected(call, spec.dynamic_shapes)
    else:
        by_name = call.by_name(spec.dynamic_shapes)
    positional, keyword = call.tree.children
    shapes = [
        given
        for name, tree in zip(
            call.arguments, (*positional.children, *keyword.children), strict=True
        )
        for given in _shapes_at(tree, by_name.get(name), name)
    ]
    names = [name for name, _ in call.leaves]
    if len(set(names)) != len(names):
        _invalid(
            f"two of the inputs have one name: {', '.join(names)}",
            "use other keys in the dicts of the example",
        )
    declared: dict[str, tuple[Declaration, ...]] = {}
    for (name, leaf), given in zip(call.leaves, shapes, strict=True):
        _require_plain(name, leaf)
        if isinstance(leaf, torch.Tensor):
            declared[name] = _dimensions(name, leaf, given, symbols)
        elif given is not None:
            _invalid(
                f"dynamic_shapes gives '{name}' dimensions, but it is {type_of(leaf)}",
                "give None for what is no tensor, and the program is specialised on its value; "
                "where it varies, pass a tensor without dimensions, or take the size of one",
            )
    used = check_example(call, declared)
    if unused := set(ranges) - {symbol.name for symbol in used}:
        _invalid(
            f"symbols declares {_listed(unused)}, which no dimension is",
            "use the name in dynamic_shapes, or leave it out",
        )
    declarations = Declarations(declared, tuple(spec.relations), ranges)
    example = list(used.values())
    for condition in declarations.conditions(list(used)):
        if not holds(condition, example):
            values = ", ".join(f"{symbol.name} = {value}" for symbol, value in used.items())
            _invalid(
                f"the example breaks the relation {condition}: it has {values}",
                "use an example that satisfies it, or declare another relation",
            )
    return declarations


def _collected(call: ExampleCall, shapes: ShapesCollection | AdditionalInputs) -> dict[str, Any]:
    """Returns by name what torch makes of a collection of shapes."""

    def signature(*args: Any, **kwargs: Any) -> None:
        """Stands for the model, of which torch needs the parameters only."""

    names = call.parameters
    signature.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        + [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in call.kwargs]
    )
    collect: Callable[..., dict[str, Any]] = shapes.dynamic_shapes
    return collect(signature, call.args, dict(call.kwargs))


def _require_plain(name: str, leaf: Any) -> None:
    """Checks that a leaf of the example is what a call can have: a dense tensor or a value."""
    if not isinstance(leaf, torch.Tensor | bool | int | float | str | None):
        _invalid(
            f"the argument '{name}' is {type_of(leaf)}",
            "pass tensors, containers of them (a dataclass must be registered with "
            "torch.export.register_dataclass), or None, bool, int, float and str",
        )
    if not isinstance(leaf, torch.Tensor):
        return
    if leaf.layout is not torch.strided or leaf.is_quantized or leaf.is_meta:
        what = (
            "quantized"
            if leaf.is_quantized
            else "on the device meta, without values"
            if leaf.is_meta
            else f"of the layout {leaf.layout}"
        )
        _invalid(
            f"the example's '{name}' is {what}",
            "pass dense tensors with values: of what is sparse its indices and values, of what is "
            "quantized its integers, scale and zero point",
        )


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "(none)"


def _invalid(reason: str, advice: str) -> NoReturn:
    raise ExportError(ExportErrorKind.INVALID_SPEC, reason, advice)


def _shapes_at(tree: Tree, shapes: Any, name: str) -> list[Any]:
    """Returns what dynamic_shapes gives for each leaf of an argument, None for nothing."""
    if tree.kind is Kind.LEAF:
        return [shapes]
    steps = tree.keys or tuple(range(len(tree.children)))
    if dataclasses.is_dataclass(shapes) and not isinstance(shapes, type):
        shapes = {field.name: getattr(shapes, field.name) for field in dataclasses.fields(shapes)}
    elif isinstance(shapes, list | tuple) and len(shapes) == len(steps):
        shapes = dict(zip(steps, shapes, strict=True))
    if shapes is not None and not (isinstance(shapes, Mapping) and set(shapes) <= set(steps)):
        _invalid(
            f"dynamic_shapes for '{name}' is not put together as the argument is",
            "nest it as the argument is nested, None for whatever is static",
        )
    return [
        inner
        for step, child in zip(steps, tree.children, strict=True)
        for inner in _shapes_at(child, (shapes or {}).get(step), f"{name}.{step}")
    ]


def _dimensions(
    name: str, tensor: torch.Tensor, shapes: Any, symbols: dict[str, Symbol]
) -> tuple[Declaration, ...]:
    if shapes is None:
        shapes = {}
    if isinstance(shapes, str):
        shapes = _from_text(name, shapes, symbols)
    if isinstance(shapes, list | tuple):
        if len(shapes) != tensor.dim():
            _invalid(
                f"dynamic_shapes lists {counted(len(shapes), 'dimension')} for '{name}', which has "
                f"{tensor.dim()}",
                "list every dimension, None for a static one, or give a dict of the dynamic ones",
            )
        shapes = dict(enumerate(shapes))
    if not isinstance(shapes, Mapping):
        _invalid(
            f"dynamic_shapes gives '{name}' {shapes!r}",
            "give a dict from dimension to Dim, or a tuple with an entry for each dimension",
        )
    for dimension in shapes:
        if not isinstance(dimension, int) or not 0 <= dimension < tensor.dim():
            _invalid(
                f"dynamic_shapes names dimension {dimension!r} of '{name}', which has "
                f"{counted(tensor.dim(), 'dimension')}",
                f"name one of the dimensions 0..{tensor.dim() - 1}"
                if tensor.dim()
                else "leave it out, since there is nothing to declare",
            )
    return tuple(
        _declaration(name, dimension, shapes.get(dimension), size)
        for dimension, size in enumerate(tensor.shape)
    )


def _from_text(name: str, text: str, symbols: dict[str, Symbol]) -> list[Any]:
    """Returns what a text says of each dimension: a size, a declaration, or None."""
    dimensions: list[Any] = []
    for size in parse_shape(text, symbols):
        if size is None or isinstance(size, Constant):
            dimensions.append(None if size is None else size.value)
            continue
        form = linear_form(size)
        if form is None:
            _invalid(
                f"the shape of '{name}', \"{text}\", has the dimension {size}",
                "declare a dimension as NUMBER*NAME + NUMBER; anything else as a name of its own, "
                f'with a relation: relations=["NAME == {size}"]',
            )
        factor, symbol, offset = form
        dimensions.append(Declared(symbols[symbol.name], factor, offset))
    return dimensions


def _declaration(name: str, dimension: int, given: Any, size: int) -> Declaration:
    match given:
        case None:
            return Static()
        case int() if given == size:
            return Static()
        case int():
            _invalid(
                f"dynamic_shapes says that '{name}' dimension {dimension} is {given}; the example "
                f"has {size}",
                "make the example agree",
            )
        case Declared():
            return given
        case _StaticDim():
            return _declaration(name, dimension, given.min, size)
        case _DimHint(type=_DimHintType.STATIC):
            return Static()
        case _DimHint():
            return Inferred(given.min or 0, given.max, given.type is _DimHintType.DYNAMIC)
        case Dim():
            root: Any = given.root if isinstance(given, _DerivedDim) else given
            offset = given.fn(0) if isinstance(given, _DerivedDim) else 0
            factor = given.fn(1) - offset if isinstance(given, _DerivedDim) else 1
            maximum = root.max if isinstance(root.max, int) else None
            return Declared(Symbol(root.__name__, root.min, maximum), factor, offset)
        case _:
            _invalid(
                f"dynamic_shapes says that '{name}' dimension {dimension} is {given!r}",
                "use a Dim, an expression of one (8*k), Dim.AUTO, Dim.DYNAMIC, or None",
            )


def check_example(
    call: ExampleCall, declared: Mapping[str, Sequence[Declaration]]
) -> dict[Symbol, int]:
    """Checks that the example is a legal call, and returns its value of each declared symbol."""
    tensors = dict(call.leaves)
    seen: dict[str, tuple[Symbol, int, str]] = {}
    for name, dimensions in declared.items():
        for dimension, declaration in enumerate(dimensions):
            size = tensors[name].shape[dimension]
            where = f"'{name}' dimension {dimension}"
            if isinstance(declaration, Inferred):
                symbol = Symbol(where, declaration.minimum, declaration.maximum)
                value = size
            elif isinstance(declaration, Declared):
                symbol, factor, offset = declaration.symbol, declaration.factor, declaration.offset
                value, remainder = divmod(size - offset, factor)
                if remainder:
                    legal = max(value, symbol.minimum)
                    legal = legal if symbol.maximum is None else min(legal, symbol.maximum)
                    _invalid(
                        f"the example's {where} is {size}, which is not of the form {declaration}",
                        f"make it {factor * legal + offset}, say",
                    )
            else:
                continue
            if value < symbol.minimum or (symbol.maximum is not None and value > symbol.maximum):
                _invalid(
                    f"the example's {where} is {size}, so {symbol.name} = {value}; declared is "
                    f"{symbol.allowed}",
                    "use an example within the declared range, or declare another range",
                )
            if isinstance(declaration, Inferred):
                continue
            before = seen.setdefault(symbol.name, (symbol, value, where))
            if before[0] != symbol:
                _invalid(
                    f"two dimensions are called '{symbol.name}', with the ranges "
                    f"{before[0].allowed} ({before[2]}) and {symbol.allowed} ({where})",
                    "use one Dim for both, or two names",
                )
            if before[1] != value:
                _invalid(
                    f"the example has {symbol.name} = {before[1]} by {before[2]}, but {value} by "
                    f"{where}",
                    "make the example's sizes agree, or use two Dims",
                )
    return {symbol: value for symbol, value, _ in seen.values()}
