"""Mutants of a protobuf message: every field of every message in it, dropped, repeated, swapped, or
set to an extreme; and its bytes cut and flipped.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

__all__ = ["byte_mutants", "field_mutants"]

_INTEGERS = (0, 1, 2, -1, 7, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
_FLOATS = (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 5e-324, 1.7e308)
_STRINGS = (
    "",
    "x",
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "é\u202e",
    "__class__",
    "x=1); import os; os.abort(",
    "aten::from_file.default",
    "aten::save.default",
    "aten::as_strided.default",
    "aten::empty.memory_format",
    "aten::set_.source_Storage",
    "python::eval",
    "os::system.default",
    "control::cond",
    "y" * 100_000,
)

Edit = Callable[[Any], None]


def field_mutants(message: Message, source: random.Random) -> Iterator[bytes]:
    """Yields serialised mutants without end, each differing from `message` in one field.

    Args:
      message: left as it is.
      source: decides which field and what becomes of it.
    """
    while True:
        mutant = copy.deepcopy(message)
        parts = list(_messages(mutant))
        part = source.choice(parts)
        fields = list(part.DESCRIPTOR.fields)
        if not fields:
            continue
        try:
            _mutate(part, source.choice(fields), parts, source)
        except (ValueError, TypeError, OverflowError):
            continue  # the value does not go into such a field
        yield mutant.SerializeToString(deterministic=True)


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        for item in value if field.is_repeated else [value]:
            yield from _messages(item)


def _mutate(
    part: Any, field: FieldDescriptor, parts: Sequence[Message], source: random.Random
) -> None:
    name = field.name
    if field.is_repeated:
        _mutate_repeated(part, field, parts, source)
    elif source.random() < 0.3:
        part.ClearField(name)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        same = [item for item in parts if item.DESCRIPTOR is field.message_type]
        getattr(part, name).SetInParent()
        if same:
            # Copied first: a message may be put into itself.
            getattr(part, name).CopyFrom(copy.deepcopy(source.choice(same)))
    else:
        setattr(part, name, _extreme(field, source))


def _mutate_repeated(
    part: Any, field: FieldDescriptor, parts: Sequence[Message], source: random.Random
) -> None:
    items = getattr(part, field.name)
    choice = source.randrange(5)
    if choice == 0 and items:
        del items[source.randrange(len(items))]
    elif choice == 1 and items:
        repeated = copy.deepcopy(items[source.randrange(len(items))])
        items.extend([repeated] * source.choice((1, 2, 300)))
    elif choice == 2 and len(items) > 1:
        kept = [copy.deepcopy(item) for item in items]
        source.shuffle(kept)
        del items[:]
        items.extend(kept)
    elif choice == 3:
        del items[:]
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        same = [item for item in parts if item.DESCRIPTOR is field.message_type]
        items.extend([copy.deepcopy(source.choice(same))] if same else [])
    elif items:
        items[source.randrange(len(items))] = _extreme(field, source)
    else:
        items.append(_extreme(field, source))


def _extreme(field: FieldDescriptor, source: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return source.choice((b"", b"\0", b"\xff" * 32, source.randbytes(32)))
        case FieldDescriptor.CPPTYPE_STRING:
            return source.choice(_STRINGS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return source.choice((False, True))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return source.choice(_FLOATS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return source.choice((0, 1, 2, 5, 100, 2**31 - 1))
        case _:
            return source.choice((*_INTEGERS, source.randrange(64)))


def byte_mutants(data: bytes, source: random.Random) -> Iterator[bytes]:
    """Yields without end what is left of `data` after it was cut, or some of its bits flipped."""
    while True:
        if source.random() < 0.25:
            yield data[: source.randrange(len(data))]
            continue
        damaged = bytearray(data)
        for _ in range(source.choice((1, 1, 1, 4))):
            damaged[source.randrange(len(damaged))] ^= 1 << source.randrange(8)
        yield bytes(damaged)
