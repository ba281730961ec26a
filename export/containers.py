"""Containers that torch takes arguments and results apart into, as trees of a contract."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import torch
from torch.utils import _pytree as pytree

from slipway.export.errors import ExportError, ExportErrorKind
from slipway.program.trees import Key, Kind, Tree, register_container_type
from slipway.program.words import with_article

__all__ = ["tree_of"]

_PLAIN = {tuple: Kind.TUPLE, list: Kind.LIST, torch.Size: Kind.TUPLE}


def tree_of(spec: pytree.TreeSpec, what: str) -> Tree:
    """Returns the tree for torch's description of a structure.

    Args:
      spec: torch's description.
      what: whose structure it is, for an error.

    Raises:
      ExportError: it has a container in it that a program cannot hold.
    """
    if spec.is_leaf():
        return Tree(Kind.LEAF)
    children = tuple(tree_of(child, what) for child in spec.children())
    if spec.type in _PLAIN:
        return Tree(_PLAIN[spec.type], children)
    if spec.type is collections.namedtuple:
        # Torch has the type itself as the context.
        return _named(Kind.NAMED_TUPLE, spec.context, tuple(spec.context._fields), children)
    cls: Any = spec.type
    if pytree.is_structseq_class(cls):
        # What `x.topk(5)` returns. Callers get a named tuple, which is the same in any process.
        return Tree(Kind.NAMED_TUPLE, children, cls.__match_args__, cls.__name__)
    if isinstance(spec.type, type) and issubclass(spec.type, dict):
        return Tree(Kind.DICT, children, _keys(spec, len(children), what))
    if dataclasses.is_dataclass(spec.type) and isinstance(spec.type, type):
        fields = _fields(spec, len(children))
        if fields is not None:
            return _named(Kind.RECORD, spec.type, fields, children)
    raise ExportError(
        ExportErrorKind.INVALID_SPEC,
        f"{what} has {with_article(getattr(spec.type, '__name__', str(spec.type)))} in it, which a "
        "program cannot hold",
        "use tuples, lists, dicts, named tuples and dataclasses that are registered with "
        "torch.export.register_dataclass",
    )


def _keys(spec: pytree.TreeSpec, count: int, what: str) -> tuple[Key, ...]:
    # A defaultdict's context is its factory and then the keys; other mappings have the keys alone.
    keys: Any = spec.context
    if spec.type is collections.defaultdict:
        keys = keys[1]
    listed: tuple[Key, ...] = tuple(keys) if isinstance(keys, list | tuple) else ()
    if len(listed) != count or not all(isinstance(key, str | int) for key in listed):
        raise ExportError(
            ExportErrorKind.INVALID_SPEC,
            f"{what} has {with_article(spec.type.__name__)} with the keys {spec.context!r}",
            "use strings or integers as keys",
        )
    return listed


def _fields(spec: pytree.TreeSpec, count: int) -> tuple[str, ...] | None:
    """Returns the fields of a registered dataclass that hold its children, if that is known."""
    context: Any = spec.context
    # torch.export.register_dataclass keeps the fields that are there and those that are None.
    names = context[0] if isinstance(context, list | tuple) and context else None
    if isinstance(names, str):
        names = context
    if not isinstance(names, list | tuple) or len(names) != count:
        return None
    return tuple(map(str, names))


def _named(kind: Kind, cls: Any, fields: tuple[str, ...], children: tuple[Tree, ...]) -> Tree:
    if kind is Kind.NAMED_TUPLE:
        register_container_type(kind, cls.__name__, fields, cls)
    else:
        register_container_type(
            kind,
            cls.__name__,
            fields,
            lambda *values: cls(**dict(zip(fields, values, strict=True))),
        )
    return Tree(kind, children, fields, cls.__name__)
