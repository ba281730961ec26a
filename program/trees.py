"""Nested Python containers: how a call's arguments and results are put together from leaves."""

from __future__ import annotations

import collections
import dataclasses
import enum
import keyword
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from slipway.program.errors import Violation
from slipway.program.words import type_of

__all__ = [
    "Key",
    "Kind",
    "StructureError",
    "Tree",
    "container_type",
    "register_container_type",
]

Key = str | int
"""A key of a dict in a tree."""


class Kind(enum.Enum):
    LEAF = "leaf"
    TUPLE = "tuple"
    LIST = "list"
    DICT = "dict"
    NAMED_TUPLE = "named tuple"
    RECORD = "record"


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
      children: the parts of a container.
      keys: a dict's keys, or the names of a named tuple's or record's fields, one for each child.
      type_name: what a named tuple or record is called.
    """

    kind: Kind
    children: tuple[Tree, ...] = ()
    keys: tuple[Key, ...] = ()
    type_name: str = ""

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
        if self.kind is Kind.NAMED_TUPLE:
            # Named tuples have it, and what torch's operators return.
            if not isinstance(value, tuple) or getattr(value, "__match_args__", ()) != self.keys:
                raise _structure_error(name, type_of(value), self._described())
            return list(value)
        if self.kind is Kind.RECORD:
            if not all(hasattr(value, str(key)) for key in self.keys):
                raise _structure_error(name, type_of(value), self._described())
            return [getattr(value, str(key)) for key in self.keys]
        if self.kind is Kind.DICT:
            if not isinstance(value, Mapping):
                raise _structure_error(name, type_of(value), "a dict")
            if set(value) != set(self.keys):
                raise _structure_error(
                    name,
                    f"a dict with the keys {_listed(value)}",
                    f"a dict with the keys {_listed(self.keys)}",
                )
            return [value[key] for key in self.keys]
        wanted = tuple if self.kind is Kind.TUPLE else list
        if not isinstance(value, wanted) or len(value) != len(self.children):
            actual = type_of(value)
            if isinstance(value, list | tuple):
                actual += f" of {len(value)}"
            raise _structure_error(name, actual, f"a {wanted.__name__} of {len(self.children)}")
        return list(value)

    def _described(self) -> str:
        return f"a {self.kind.value} {self.type_name} with the fields {_listed(self.keys)}"

    def unflatten(self, leaves: Iterator[object]) -> object:
        """Returns containers of this structure, taking the leaves from `leaves` in order.

        Named tuples and records are of the type that the model used where this process exported it,
        and otherwise of one with the same name and fields.
        """
        if self.kind is Kind.LEAF:
            return next(leaves)
        parts = [child.unflatten(leaves) for child in self.children]
        if self.kind is Kind.DICT:
            return dict(zip(self.keys, parts, strict=True))
        if self.kind in (Kind.NAMED_TUPLE, Kind.RECORD):
            return container_type(self.kind, self.type_name, self.keys)(*parts)
        return tuple(parts) if self.kind is Kind.TUPLE else parts


_MAXIMUM_FIELDS = 1000
"""Making a dataclass takes time that grows with the square of this."""

_container_types: dict[tuple[Kind, str, tuple[Key, ...]], Callable[..., object]] = {}


def register_container_type(
    kind: Kind, name: str, fields: tuple[Key, ...], make: Callable[..., object]
) -> None:
    """Makes `unflatten` use a type that this process has.

    Args:
      kind: NAMED_TUPLE or RECORD.
      name: of the type, as trees name it.
      fields: of the type, in order.
      make: returns a value of the type from the values of its fields.
    """
    _container_types[kind, name, fields] = make


def container_type(kind: Kind, name: str, fields: tuple[Key, ...]) -> Callable[..., object]:
    """Returns what makes a named tuple or a record from the values of its fields.

    Raises:
      ValueError: the name or a field is not one that Python allows. They may come from an artifact,
        and the standard library makes these types by running text that it composes of them.
    """
    known = _container_types.get((kind, name, fields))
    if known is not None:
        return known
    names = list(map(str, fields))
    if len(names) > _MAXIMUM_FIELDS:
        raise ValueError(f"it has {len(names)} fields; {_MAXIMUM_FIELDS} are allowed")
    if bad := [item for item in (name, *names) if not _is_name(item)]:
        raise ValueError(f"{bad[0]!r} is no name of a type or a field in Python")
    make: Callable[..., object] = (
        collections.namedtuple(name, names)
        if kind is Kind.NAMED_TUPLE
        else dataclasses.make_dataclass(name, names)
    )
    _container_types[kind, name, fields] = make
    return make


def _is_name(text: str) -> bool:
    return (
        text.isidentifier()
        and not keyword.iskeyword(text)
        # Python takes two names for one that are written differently, but mean the same letters.
        and unicodedata.normalize("NFKC", text) == text
        # __class__, say, means something else.
        and not text.startswith("__")
    )


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
