"""Finds out why a model does not do what its graph does."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch.utils import _pytree as pytree

from slipway.export.rounding import computing_as_traced, differ_by_rounding

__all__ = ["Diagnosis", "diagnose"]


_PAUSE = 0.02
"""Seconds between two calls, so that a clock shows."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a model and its graph differ.

    Attributes:
      reason: a clause about the model.
      advice: what to change.
    """

    reason: str
    advice: str


def diagnose(model: torch.nn.Module, call: Callable[[], Any]) -> Diagnosis:
    """Returns why a model differs from its graph, by calling it and looking what it touches.

    Args:
      model: what `call` calls.
      call: calls the model, on the same inputs each time.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attributes = _attributes(model)
        sources = _random_states()
        first = _outcome(call)
        drawn_from = [name for name, state in _random_states().items() if state != sources[name]]
        changed = [
            name for name, value in _attributes(model).items() if attributes.get(name) != value
        ]
        time.sleep(_PAUSE)
        repeatable = _equal(first, _outcome(call))
        with computing_as_traced(model):
            computes_otherwise = not differ_by_rounding(first, _outcome(call))
    if "torch" in drawn_from and any(module.training for module in model.modules()):
        return Diagnosis(
            "the model drops out at random, or the like",
            "the model is in training mode: call .eval() on it",
        )
    if drawn_from:
        return Diagnosis(
            f"the model draws random numbers from {' and '.join(drawn_from)}",
            "compute without random numbers, or take what is random as an input",
        )
    if changed:
        return Diagnosis(
            f"the model changes its attribute '{changed[0]}' when it is called",
            "make it a buffer, with register_buffer in the constructor, and change that in place; "
            "or take it as an argument",
        )
    if not repeatable:
        return Diagnosis(
            "the model gives other results when it is called again",
            "let the results depend on the inputs and the weights alone, and on no clock and no "
            "global variable",
        )
    if computes_otherwise:
        return Diagnosis(
            "the model takes torch's fast path for attention, which gives other results for "
            "padding",
            "set them yourself: encoded.masked_fill(mask[..., None], 0); or call "
            "torch.backends.mha.set_fastpath_enabled(False) before the export, if the program may "
            "give what the model gives without that path, as it does in training",
        )
    return Diagnosis(
        "the model does something else while it is traced",
        "look for Python code that catches errors, or asks for the text or the type of a tensor or "
        "a size: a traced one has others; if it differs where a size is 0 or 1, as a branch "
        "for empty tensors makes it, declare a range without that",
    )


def _random_states() -> dict[str, Any]:
    """Returns where the sources of random numbers stand, in a form that can be compared."""
    name, keys, *rest = numpy.random.get_state()
    return {
        "torch": torch.random.get_rng_state().tolist(),
        "Python's random module": random.getstate(),
        "numpy.random": (name, list(keys), *rest),
    }


def _outcome(call: Callable[[], Any]) -> Any:
    """Returns what a call gives, or the name of its error."""
    try:
        return call()
    except Exception as error:
        return type(error).__name__


def _equal(first: Any, second: Any) -> bool:
    ours, theirs = pytree.tree_leaves(first), pytree.tree_leaves(second)
    return len(ours) == len(theirs) and all(
        one.shape == other.shape
        and one.dtype is other.dtype
        and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        else one == other
        for one, other in zip(ours, theirs, strict=True)
    )


def _attributes(model: torch.nn.Module) -> dict[str, str]:
    """Returns the attributes of all modules that hold no tensors or modules, as texts."""
    return {
        f"{path}.{name}" if path else name: repr(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, torch.Tensor)
    }
