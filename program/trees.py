"""Nested Python containers: how a call's arguments and results are put together from leaves."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from slipway.program.errors import Violation

__all__ = ["Key", "Kind", "StructureError", "Tree"]

Key = str | int
"""A key of a dict in a tree."""


class Kind(enum.Enum):
    LEAF = "leaf"
    TUPLE = "tuple"
    LIST = "list"
    DICT = "dict"


class StructureError(ValueError):
    """A value is not put together as a tree says; `violation` says where."""

    def __init__(self, violation: Violation) -> None:
        self.violation = violation
        super().__init__(violation.description)


@dataclass(frozen=True, slots=True)
class Tree:
    """The structure of nested containers. Leaves are numbered left to right.

    Attributes:
      kind: what this node is.
      children: the parts of a tuple, list or dict.
      keys: a dict's keys, one for each child, in insertion order.
    """

    kind: Kind
    children: tuple[Tree, ...] = ()
    keys: tuple[Key, ...] = ()

    @property
    def leaf_count(self) -> int:
        """Returns how many leaves there are."""
        if self.kind is Kind.LEAF:
            return 1
        return sum(child.leaf_count for child in self.children)

    def leaf_paths(self, path: tuple[Key, ...] = ()) -> Iterator[tuple[Key, ...]]:
        """Yields the path to each leaf: keys of dicts and positions in tuples and lists."""
        if self.kind is Kind.LEAF:
            yield path
        for step, child in self._steps():
            yield from child.leaf_paths((*path, step))

    def _steps(self) -> Iterator[tuple[Key, Tree]]:
        return zip(self.keys or range(len(self.children)), self.children, strict=True)

    def flatten(self, value: object, name: str) -> list[object]:
        """Returns the leaves of `value`.

        Args:
          value: nested containers of this very structure.
          name: what to call `value` in an error.

        Raises:
          StructureError: `value` is put together differently.
        """
        leaves: list[object] = []
        self._flatten_into(leaves, value, name)
        return leaves

    def _flatten_into(self, leaves: list[object], value: object, name: str) -> None:
        if self.kind is Kind.LEAF:
            leaves.append(value)
            return
        parts = self._parts(value, name)
        for (step, child), part in zip(self._steps(), parts, strict=True):
            child._flatten_into(leaves, part, f"{name}.{step}")

    def _parts(self, value: object, name: str) -> list[object]:
        if self.kind is Kind.DICT:
            if not isinstance(value, Mapping):
                raise _structure_error(name, f"a {type(value).__name__}", "a dict")
            if set(value) != set(self.keys):
                raise _structure_error(
                    name,
                    f"a dict with the keys {_listed(value)}",
                    f"a dict with the keys {_listed(self.keys)}",
                )
            return [value[key] for key in self.keys]
        wanted = tuple if self.kind is Kind.TUPLE else list
        if not isinstance(value, wanted) or len(value) != len(self.children):
            actual = f"a {type(value).__name__}"
            if isinstance(value, list | tuple):
                actual += f" of {len(value)}"
            raise _structure_error(name, actual, f"a {wanted.__name__} of {len(self.children)}")
        return list(value)

    def unflatten(self, leaves: Iterator[object]) -> object:
        """Returns containers of this structure, taking the leaves from `leaves` in order."""
        if self.kind is Kind.LEAF:
            return next(leaves)
        parts = [child.unflatten(leaves) for child in self.children]
        if self.kind is Kind.DICT:
            return dict(zip(self.keys, parts, strict=True))
        return tuple(parts) if self.kind is Kind.TUPLE else parts


def _listed(keys: object) -> str:
    assert isinstance(keys, tuple | Mapping)
    return ", ".join(repr(key) for key in keys) or "(none)"


def _structure_error(name: str, actual: str, allowed: str) -> StructureError:
    return StructureError(
        Violation(
            code="structure",
            description=f"argument '{name}' is {actual}; it must be {allowed}",
            input=name,
            actual=actual,
            allowed=allowed,
        )
    )
