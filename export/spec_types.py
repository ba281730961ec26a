"""Tells apart what a spec's fields may be and what they are, before anything is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.spec import ExportSpec, MethodSpec
from slipway.program.words import type_of

__all__ = ["require_name", "require_types"]


def require_types(spec: ExportSpec) -> None:
    """Checks the fields of a spec and of its methods.

    Raises:
      ExportError: one is of another type than `ExportSpec` and `MethodSpec` say, or the spec has
        both methods and what describes a method of its own, or a method has no proper name.
    """
    if isinstance(spec.model, type):
        raise _error(
            f"the model is the class {spec.model.__name__}, and not one of its instances",
            f"make one: {spec.model.__name__}(…).eval()",
        )
    _require(spec, "custom_ops", _is_sequence_of_text, 'a list of texts, such as ["my_ops"]')
    _require(spec, "cases", _is_count, "an integer that is not negative")
    if spec.methods is None or spec.methods == {}:
        _require_method_types(spec)
        return
    if not isinstance(spec.methods, Mapping) or not all(
        isinstance(name, str) and isinstance(method, MethodSpec)
        for name, method in spec.methods.items()
    ):
        raise _error(
            "methods is no dict from names to MethodSpec",
            'write methods={"encode": MethodSpec(args=…), …}',
        )
    for field in dataclasses.fields(MethodSpec):
        if getattr(spec, field.name) is not field.default:
            raise _error(
                f"the spec has both methods and a method of its own, with {field.name}",
                f"give each method its own, in methods=: MethodSpec({field.name}=…)",
            )
    for name, method in spec.methods.items():
        require_name("a method", name)
        _require_method_types(method, f"of the method '{name}' ")


def require_name(whose: str, name: str) -> None:
    """Checks a name that clients, logs and checked-in files will have.

    Args:
      whose: such as "an output".
      name: what it is called.

    Raises:
      ExportError: it is empty, or has control characters or others that cannot be printed.
    """
    if not name or not name.isprintable():
        raise _error(
            f"{whose} has the name {name!r}",
            "give it one of printable characters: it will be a line of logs and contracts",
        )


def _require_method_types(spec: MethodSpec, whose: str = "") -> None:
    for field, is_right, what in (
        ("kwargs", _is_mapping, "a dict from names to arguments"),
        ("symbols", _is_mapping, 'a dict such as {"batch": (1, 64)}'),
        ("relations", _is_sequence_of_text, 'a list of texts, such as ["batch % 8 == 0"]'),
        ("output_names", _is_sequence_of_text, 'a list of texts, such as ["scores"]'),
        ("batching", _is_batching, "True, False, or the name of a symbol"),
        ("batching_tolerance", _is_tolerance, "two numbers: absolute and relative"),
        ("padding", _is_padding, 'a dict such as {"seq": {"tokens": 0}}'),
        ("accept_narrowing", _is_text, "a text that says why"),
    ):
        if getattr(spec, field) is not None:
            _require(spec, field, is_right, what, whose)
    if isinstance(spec.dynamic_shapes, str):
        raise _error(
            f"dynamic_shapes {whose}is the text {spec.dynamic_shapes!r}",
            f'name the argument: dynamic_shapes={{"x": {spec.dynamic_shapes!r}}}, or one text for '
            "each in a tuple",
        )


def _require(
    spec: MethodSpec, field: str, is_right: Callable[[Any], bool], what: str, whose: str = ""
) -> None:
    value = getattr(spec, field)
    if not is_right(value):
        raise _error(f"{field} {whose}is {_shown(value)}", f"give {what}")


def _error(reason: str, advice: str) -> ExportError:
    return ExportError(ExportErrorKind.INVALID_SPEC, reason, advice)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else type_of(value)


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_sequence_of_text(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(item, str) for item in value)
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_batching(value: object) -> bool:
    return isinstance(value, bool | str)


def _is_tolerance(value: object) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(item, int | float) and item >= 0 for item in value)
    )


def _is_padding(value: object) -> bool:
    return isinstance(value, Mapping) and all(_is_mapping(item) for item in value.values())
