"""Operators that a user's library registers with torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable

import torch

from slipway.program.errors import SlipwayError

__all__ = ["CustomOpsError", "load_custom_ops"]


class CustomOpsError(SlipwayError):
    """A library of operators cannot be imported, or registers none."""


def load_custom_ops(modules: Iterable[str]) -> frozenset[str]:
    """Imports libraries of operators, and returns the namespaces that they register.

    Args:
      modules: by their import names. They come from a command line or a BUILD file, never from a
        program.

    Raises:
      CustomOpsError: one of them cannot be imported, or registers nothing.
    """
    namespaces: set[str] = set()
    imported_before = set(sys.modules)
    for module in modules:
        before = _registered()
        # Another of the modules imports it, and its operators are among that one's.
        brought_along = module in sys.modules and module not in imported_before
        try:
            importlib.import_module(module)
        except Exception as error:
            raise CustomOpsError(
                f"the operator library '{module}' cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        added = _registered() - before
        if not added and not brought_along:
            raise CustomOpsError(
                f"the operator library '{module}' registers no operators (or was imported before)"
            )
        namespaces |= {name.partition("::")[0] for name in added}
    return frozenset(namespaces)


def _registered() -> set[str]:
    return set(torch._C._dispatch_get_all_op_names())
