"""The guards that torch keeps with an exported program, which are Python text, as relations.

    "(8*L['x'].size()[0]) % 64 == 0"   becomes   "8 * x_0 % 64 == 0"

Torch runs the text. Here it is parsed by Python's own parser, and what stands for a size is
replaced by that size in a contract's symbols; what the result may consist of, `shape_language`
decides.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.shape_language import parse_relation
from slipway.program.expressions import SymbolReference

__all__ = ["GuardReader"]

_FLAT = "flat_args"
"""What torch calls the list of all leaves, where it does not say how they are nested."""


@dataclass(frozen=True, slots=True)
class GuardReader:
    """Reads guards about the inputs of one call.

    Attributes:
      symbols: the names of the contract's symbols.
      shapes: for each tensor of the call, by its name (`x.mask`), its sizes as texts over symbols.
      leaves: the names of all leaves of the call, in order.
      values: of the integers among them, by name.
    """

    symbols: Sequence[str]
    shapes: Mapping[str, Sequence[str]]
    leaves: Sequence[str]
    values: Mapping[str, int]

    def relation(self, guard: str) -> str:
        """Returns a guard as a relation between symbols.

        Args:
          guard: as torch has it, over `L['x']['mask'].size()[0]` and the like.

        Raises:
          ExportError: the guard is about something else than sizes.
        """
        meaning = {name: SymbolReference(at, name) for at, name in enumerate(self.symbols)}
        try:
            tree = ast.parse(guard.strip(), mode="eval")
            text = ast.unparse(_Rewriter(guard, self).visit(tree))
            parse_relation(text, meaning)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise _beyond(guard, f"it cannot be parsed: {error}") from error
        except ExportError as error:
            if error.kind is ExportErrorKind.CONSTRAINT_VIOLATION:
                raise
            raise _beyond(guard, error.reason) from error
        return text


def _beyond(guard: str, reason: str) -> ExportError:
    return ExportError(
        ExportErrorKind.CONSTRAINT_VIOLATION,
        f"the exported program relies on `{guard}`, which a contract cannot say: {reason}",
        "export the model with slipway.export, which finds out what it needs of its inputs",
    )


class _Rewriter(ast.NodeTransformer):
    """Replaces what stands for sizes by the sizes."""

    def __init__(self, guard: str, call: GuardReader) -> None:
        self._guard = guard
        self._shapes = call.shapes
        self._leaves = call.leaves
        self._values = call.values

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        match node:
            case ast.Subscript(
                value=ast.Call(func=ast.Attribute(value=source, attr="size"), args=[], keywords=[])
                | ast.Attribute(value=source, attr="shape"),
                slice=ast.Constant(value=int(dimension)),
            ):
                name = self._leaf(source)
                if name not in self._shapes or not 0 <= dimension < len(self._shapes[name]):
                    raise _beyond(self._guard, f"there is no dimension `{ast.unparse(node)}`")
                return ast.parse(self._shapes[name][dimension], mode="eval").body
        return self._value(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._value(node)

    def _value(self, node: ast.expr) -> ast.expr:
        """Returns the number that an input is which is no tensor."""
        name = self._leaf(node)
        if name not in self._values:
            raise _beyond(self._guard, f"`{ast.unparse(node)}` is no size")
        return ast.Constant(self._values[name])

    def _leaf(self, node: ast.expr) -> str:
        """Returns the name of the leaf that `L['x'][0].field` stands for."""
        path: list[str] = []
        place = node
        while True:
            match place:
                case ast.Name(id="L") if path:
                    break
                case ast.Subscript(value=inner, slice=ast.Constant(value=str() | int() as key)):
                    path.insert(0, str(key))
                case ast.Attribute(value=inner, attr=attribute):
                    path.insert(0, attribute)
                case _:
                    raise _beyond(self._guard, f"`{ast.unparse(node)}` is no size")
            place = inner
        name = ".".join(path)
        if name in self._leaves:
            return name
        if path[0] == _FLAT and len(path) == 2 and int(path[1]) < len(self._leaves):
            return self._leaves[int(path[1])]
        # Of `*args` each is an argument of its own, called args_0, args_1, …
        numbered = ".".join(["_".join(path[:2]), *path[2:]])
        return numbered if numbered in self._leaves else ".".join(path[1:])
