"""What the symbols of torch's shape environment are in terms of a contract's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

from slipway.export.capture import Capture, Guard
from slipway.export.dimensions import Declaration, Declared, Inferred
from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.symbolic import InexpressibleError, to_expression
from slipway.program.contract import Symbol, TensorSpec
from slipway.program.expressions import Expression, Unknown
from slipway.program.torch_types import from_torch

__all__ = ["SymbolTable", "expression_of"]


@dataclass
class SymbolTable:
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
    _pending: list[tuple[str, int, sympy.Symbol, Inferred]] = field(default_factory=list)

    @property
    def index(self) -> dict[sympy.Symbol, int]:
        return {_sympy_symbol(item.name): index for index, item in enumerate(self.symbols)}

    def declare(self, name: str, tensor: torch.Tensor, declared: Sequence[Declaration]) -> None:
        """Takes up what the user declared of a tensor's dimensions."""
        for dimension, (size, declaration) in enumerate(zip(tensor.shape, declared, strict=True)):
            raw = expression_of(size)
            if isinstance(declaration, Declared):
                if not isinstance(raw, sympy.Symbol):
                    raise self._specialized(f"'{name}' dimension {dimension}", None, raw)
                if declaration.symbol not in self.symbols:
                    self.symbols.append(declaration.symbol)
                symbol = _sympy_symbol(declaration.symbol.name)
                value = declaration.factor * symbol + declaration.offset
                self.meaning[raw] = value
                root = self._root(raw)
                if isinstance(root, sympy.Symbol):
                    self.meaning.setdefault(root, value)
            elif isinstance(declaration, Inferred) and isinstance(raw, sympy.Symbol):
                self._pending.append((name, dimension, raw, declaration))

    def infer_all(self) -> None:
        """Names the symbols that tracing found, and expresses the other inferred sizes by them."""
        for name, dimension, raw, declaration in self._pending:
            root = self._root(raw)
            if isinstance(root, sympy.Integer) and declaration.required:
                raise self._specialized(f"'{name}' dimension {dimension}", raw, root)
            if isinstance(root, sympy.Symbol) and root not in self.meaning:
                self._add_inferred(f"{name}_{dimension}", root, declaration)
        for _, _, raw, _ in self._pending:
            self.meaning.setdefault(raw, self._root(raw).xreplace(self.meaning))

    def hinted_bounds(self) -> Iterator[Guard]:
        """Yields the bounds that were given to inferred sizes, which tracing takes for granted.

        Where such a size turned out to be another one, or an expression of others, no range of a
        symbol says so.
        """
        for _, _, raw, declaration in self._pending:
            yield Guard(sympy.Ge(raw, declaration.minimum), None)
            if declaration.maximum is not None:
                yield Guard(sympy.Le(raw, declaration.maximum), None)

    def _add_inferred(self, name: str, root: sympy.Symbol, declaration: Inferred) -> None:
        taken = {symbol.name for symbol in self.symbols}
        unique = name.replace(".", "_")
        while unique in taken:
            unique += "_"
        hints = [other for _, _, raw, other in self._pending if self._root(raw) == root]
        lowest = max([declaration.minimum, *(hint.minimum for hint in hints)])
        highest = [hint.maximum for hint in hints if hint.maximum is not None]
        assert self.capture.shape_env is not None
        found = self.capture.shape_env.var_to_range.get(root)
        if found is not None:
            # What a guard excludes of 0 and 1 may be legal, and the guards say it themselves.
            lowest = max(lowest, int(found.lower) if found.lower > 2 else 0)
            if isinstance(found.upper, sympy.Integer):
                highest.append(int(found.upper))
        self.symbols.append(Symbol(unique, lowest, min(highest) if highest else None))
        self.meaning[root] = _sympy_symbol(unique)
        self.inferred.add(_sympy_symbol(unique))

    def _root(self, raw: sympy.Basic) -> sympy.Basic:
        assert self.capture.shape_env is not None
        return self.capture.shape_env.replace(raw)

    def _specialized(self, where: str, raw: sympy.Symbol | None, value: sympy.Basic) -> ExportError:
        equalities = (
            guard.source
            for guard in self.capture.guards
            if isinstance(guard.condition, sympy.Eq) and raw in guard.condition.free_symbols
        )
        source = next(equalities, None)
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
        value = expression_of(size).xreplace(self.meaning).replace(FloorDiv, self._quotient)
        try:
            return to_expression(value, self.index)
        except InexpressibleError:
            return Unknown()

    def _quotient(self, dividend: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
        """Returns `dividend // divisor`, without the division where the divisor is a symbol in it.

        A bag of embeddings counts its rows so: `(batch*items + items - 1) // items`.
        """
        whole, rest = sympy.Integer(0), sympy.Integer(0)
        for term in sympy.Add.make_args(sympy.expand(dividend)):
            if term == divisor or (isinstance(term, sympy.Mul) and divisor in term.args):
                whole += term / divisor
            else:
                rest += term
        least = self.symbols[self.index[divisor]].minimum if divisor in self.index else 0
        if isinstance(rest, sympy.Integer) and -least <= rest < least:
            return whole if rest >= 0 else whole - 1
        return FloorDiv(dividend, divisor)


def _sympy_symbol(name: str) -> sympy.Symbol:
    # Not positive: a declared range may start at 0, and sympy must not simplify that away.
    return sympy.Symbol(name, integer=True, nonnegative=True)


def expression_of(size: int | torch.SymInt | torch.SymBool) -> sympy.Basic:
    return (
        size.node._expr if isinstance(size, torch.SymInt | torch.SymBool) else sympy.Integer(size)
    )
