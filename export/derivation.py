"""Derives the contract of a captured graph from what was declared and what tracing relied on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from slipway.export.capture import Capture, Guard
from slipway.export.dimensions import Declaration, Declared, ExampleCall, Inferred
from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.narrowing import Verdict, examine, narrowing_error
from slipway.export.symbolic import InexpressibleError, to_condition, to_expression
from slipway.program.contract import (
    Contract,
    InputSpec,
    OutputSpec,
    PythonValue,
    Relation,
    Symbol,
    TensorSpec,
    UnboundSymbolError,
)
from slipway.program.expressions import Constant, Expression, SymbolReference, Unknown
from slipway.program.torch_types import from_torch
from slipway.program.trees import Kind, Tree

__all__ = ["derive_contract"]


def derive_contract(
    capture: Capture,
    call: ExampleCall,
    declared: Mapping[str, Sequence[Declaration]],
    output_names: Sequence[str] | None,
    method: str,
) -> Contract:
    """Returns the contract under which a captured graph is valid.

    Args:
      capture: the graph and its guards.
      call: the example.
      declared: what the user declared of each tensor's dimensions.
      output_names: names for the leaves of the output, or None for the default ones.
      method: the method's name.

    Raises:
      ExportError: the graph is valid for fewer shapes than were declared, or relies on something
        that no contract can say.
    """
    exported = capture.exported
    input_tree = _tree(exported.call_spec.in_spec, "the example arguments")
    output_tree = _tree(exported.call_spec.out_spec, "the output")
    names = [_input_name(path, call.parameters) for path in input_tree.leaf_paths()]
    leaves = _user_inputs(capture)
    table = _SymbolTable(capture)
    for name, leaf in zip(names, leaves, strict=True):
        if isinstance(leaf, torch.Tensor):
            table.declare(name, leaf, declared[name])
    table.infer_all()
    inputs = tuple(
        InputSpec(name, tensor=table.tensor_spec(leaf, name))
        if isinstance(leaf, torch.Tensor)
        else InputSpec(name, constant=leaf)
        for name, leaf in zip(names, leaves, strict=True)
    )
    outputs = _outputs(capture, output_tree, output_names, table)
    relations = tuple(_relations(capture.guards, table))
    try:
        contract = Contract(
            method=method,
            symbols=tuple(table.symbols),
            inputs=inputs,
            input_tree=input_tree,
            parameters=call.parameters,
            outputs=outputs,
            output_tree=output_tree,
            relations=relations,
        )
    except UnboundSymbolError as error:
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            str(error),
            "declare a dimension that is the symbol itself, or linear in it",
        ) from error
    return _with_batch_symbol(contract)


def _tree(spec: pytree.TreeSpec, what: str) -> Tree:
    if spec.is_leaf():
        return Tree(Kind.LEAF)
    kinds = {tuple: Kind.TUPLE, list: Kind.LIST, dict: Kind.DICT}
    kind = kinds.get(spec.type)
    if kind is None:
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"{what} has a {spec.type.__name__} in it, which a program cannot hold yet",
            "use tuples, lists and dicts",
        )
    keys = tuple(spec.context) if kind is Kind.DICT else ()
    if not all(isinstance(key, str | int) for key in keys):
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"{what} has a dict with the keys {keys!r}",
            "use strings or integers as keys",
        )
    return Tree(kind, tuple(_tree(child, what) for child in spec.children()), keys)


def _input_name(path: tuple[str | int, ...], parameters: Sequence[str]) -> str:
    position, name, *rest = path
    if position == 0:
        name = parameters[int(name)]
    return ".".join(map(str, (name, *rest)))


def _user_inputs(capture: Capture) -> list[torch.Tensor | PythonValue]:
    """Returns the leaves of the input tree: tensors of symbolic shape, or Python values."""
    placeholders = {node.name: node for node in capture.exported.graph.nodes}
    leaves: list[torch.Tensor | PythonValue] = []
    for spec in capture.exported.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, TensorArgument):
            leaves.append(placeholders[spec.arg.name].meta["val"])
        elif isinstance(spec.arg, ConstantArgument):
            leaves.append(spec.arg.value)
        else:
            raise ExportError(
                ExportErrorKind.INVALID_SPEC,
                f"the argument '{spec.arg.name}' is neither a tensor nor a plain value",
                "pass tensors, or values of the types None, bool, int, float and str",
            )
    return leaves


@dataclass
class _SymbolTable:
    """What the symbols of torch's shape environment are in terms of the contract's.

    Attributes:
      symbols: the contract's.
      meaning: for each symbol of torch an expression over the contract's.
      inferred: the contract's symbols that nobody declared.
    """

    capture: Capture
    symbols: list[Symbol] = field(default_factory=list)
    meaning: dict[sympy.Symbol, sympy.Basic] = field(default_factory=dict)
    inferred: set[sympy.Symbol] = field(default_factory=set)
    _pending: list[tuple[str, sympy.Symbol, Inferred]] = field(default_factory=list)

    @property
    def index(self) -> dict[sympy.Symbol, int]:
        return {_sympy_symbol(item.name): index for index, item in enumerate(self.symbols)}

    def declare(self, name: str, tensor: torch.Tensor, declared: Sequence[Declaration]) -> None:
        """Takes up what the user declared of a tensor's dimensions."""
        for dimension, (size, declaration) in enumerate(zip(tensor.shape, declared, strict=True)):
            raw = _expression_of(size)
            if isinstance(declaration, Declared):
                if not isinstance(raw, sympy.Symbol):
                    raise self._specialized(f"'{name}' dimension {dimension}", declaration, raw)
                if declaration.symbol not in self.symbols:
                    self.symbols.append(declaration.symbol)
                symbol = _sympy_symbol(declaration.symbol.name)
                value = declaration.factor * symbol + declaration.offset
                self.meaning[raw] = value
                root = self._root(raw)
                if isinstance(root, sympy.Symbol):
                    self.meaning.setdefault(root, value)
            elif isinstance(declaration, Inferred) and isinstance(raw, sympy.Symbol):
                self._pending.append((f"{name}_{dimension}", raw, declaration))

    def infer_all(self) -> None:
        """Names the symbols that tracing found, and expresses the other inferred sizes by them."""
        for name, raw, declaration in self._pending:
            root = self._root(raw)
            if isinstance(root, sympy.Integer) and declaration.required:
                raise self._specialized(f"'{name}'", declaration, root)
            if isinstance(root, sympy.Symbol) and root not in self.meaning:
                self._add_inferred(name, root, declaration)
        for _, raw, _ in self._pending:
            self.meaning.setdefault(raw, self._root(raw).xreplace(self.meaning))

    def _add_inferred(self, name: str, root: sympy.Symbol, declaration: Inferred) -> None:
        taken = {symbol.name for symbol in self.symbols}
        unique = name.replace(".", "_")
        while unique in taken:
            unique += "_"
        hints = [other for _, raw, other in self._pending if self._root(raw) == root]
        lowest = max([declaration.minimum, *(hint.minimum for hint in hints)])
        highest = [hint.maximum for hint in hints if hint.maximum is not None]
        assert self.capture.shape_env is not None
        found = self.capture.shape_env.var_to_range.get(root)
        if found is not None:
            lowest = max(lowest, int(found.lower))
            if isinstance(found.upper, sympy.Integer):
                highest.append(int(found.upper))
        self.symbols.append(Symbol(unique, lowest, min(highest) if highest else None))
        self.meaning[root] = _sympy_symbol(unique)
        self.inferred.add(_sympy_symbol(unique))

    def _root(self, raw: sympy.Basic) -> sympy.Basic:
        assert self.capture.shape_env is not None
        return self.capture.shape_env.replace(raw)

    def _specialized(self, where: str, declaration: Declaration, value: sympy.Basic) -> ExportError:
        equalities = (item for item in self.capture.guards if isinstance(item.condition, sympy.Eq))
        source = next((item.source for item in equalities), None)
        return ExportError(
            ExportErrorKind.CONSTRAINT_VIOLATION,
            f"{where} is declared dynamic, but the model works only for the size {value}",
            "make the dimension static, or change the line so that it holds for any size",
            source,
        )

    def tensor_spec(self, tensor: torch.Tensor, what: str) -> TensorSpec:
        """Returns the spec of a tensor of symbolic shape."""
        try:
            dtype = from_torch(tensor.dtype)
        except ValueError as error:
            raise ExportError(
                ExportErrorKind.INVALID_SPEC, f"'{what}' is of {error}", "convert the tensor"
            ) from error
        return TensorSpec(dtype, tuple(self.size(size) for size in tensor.shape))

    def size(self, size: int | torch.SymInt) -> Expression:
        """Returns a size as an expression; `Unknown` where it depends on data."""
        value = _expression_of(size).xreplace(self.meaning)
        try:
            return to_expression(value, self.index)
        except InexpressibleError:
            return Unknown()


def _sympy_symbol(name: str) -> sympy.Symbol:
    # Not positive: a declared range may start at 0, and sympy must not simplify that away.
    return sympy.Symbol(name, integer=True, nonnegative=True)


def _expression_of(size: int | torch.SymInt) -> sympy.Basic:
    return size.node._expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _outputs(
    capture: Capture, tree: Tree, names: Sequence[str] | None, table: _SymbolTable
) -> tuple[OutputSpec, ...]:
    paths = list(tree.leaf_paths())
    if names is None:
        names = [_output_name(path) for path in paths]
    elif len(names) != len(paths) or len(set(names)) != len(names):
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"output_names are {list(names)}; the model has {len(paths)} outputs",
            "give each output a name of its own",
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


def _output_spec(name: str, value: Any, table: _SymbolTable) -> OutputSpec:
    if not isinstance(value, torch.fx.Node):
        if not isinstance(value, bool | int | float | str | None):
            raise ExportError(
                ExportErrorKind.INVALID_SPEC,
                f"output '{name}' is a {type(value).__name__}",
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


def _relations(guards: Sequence[Guard], table: _SymbolTable) -> Iterator[Relation]:
    seen: set[str] = set()
    for guard in guards:
        condition = guard.condition.xreplace(table.meaning)
        if condition == sympy.true or not condition.free_symbols <= set(table.index):
            continue  # always so, or about data: then the graph itself asserts it
        try:
            converted = to_condition(condition, table.index)
        except InexpressibleError as error:
            raise ExportError(
                ExportErrorKind.CONSTRAINT_VIOLATION,
                f"the model relies on {condition}, which a contract cannot say",
                "compute sizes with +, -, *, //, %, min and max only",
                guard.source,
            ) from error
        if str(converted) in seen:
            continue
        seen.add(str(converted))
        verdict = examine(condition, converted, table.symbols, table.index)
        if verdict.kind is Verdict.Kind.ALWAYS:
            continue
        if verdict.counterexample is not None and not condition.free_symbols & table.inferred:
            raise narrowing_error(converted, verdict.counterexample, table.symbols, guard.source)
        yield Relation(converted, "" if guard.source is None else str(guard.source))


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
