"""Turns what torch raises when it cannot trace a model into an `ExportError`.

Torch's own texts speak of torch's insides, and one mistake has many of them: by mode, by operator
and by what stands around it. `RULES` says what each means to the model's author.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from unittest import mock

from torch._dynamo.exc import TorchDynamoException
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.export import _trace
from torch.fx.experimental.symbolic_shapes import (
    GuardOnDataDependentSymNode,
    PendingUnbackedSymbolNotFound,
)

from slipway.export.catalogue import page_of
from slipway.export.errors import ExportError
from slipway.export.sources import called_by_user_line, user_line_of_exception
from slipway.export.translation_rules import RULES, Rule

__all__ = ["is_from_tracing", "quiet_torch", "translate"]

_LONGEST_CAUSE = 300


def translate(error: Exception) -> ExportError:
    """Returns the error to raise in place of one that torch raised while it traced a model."""
    source = user_line_of_exception(error)
    line = "" if source is None else source.text
    text = _text_of(error)
    rule, match = _find_rule(text, line, called_by_user_line(error) or "")
    subject = next(filter(None, match.groups()), "")
    return ExportError(
        rule.kind,
        rule.reason.format(subject),
        rule.advice,
        source,
        cause=_cause_of(error),
        page=page_of(rule.kind.value, rule.entry),
    )


def is_from_tracing(error: Exception) -> bool:
    """Returns whether torch raised an error as it traced, which it does in eager mode too.

    That is for the branches of torch.cond and its kin.
    """
    return isinstance(
        error,
        TorchDynamoException
        | DataDependentOutputException
        | DynamicOutputShapeException
        | UnsupportedOperatorException
        | GuardOnDataDependentSymNode
        | PendingUnbackedSymbolNotFound,
    )


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Keeps torch from printing what it also raises: warnings, and graphs up to an error.

    Loggers that TORCH_LOGS turns on have levels of their own, and go on.
    """
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        # torch.export prints the graph as far as it came, to standard error.
        with (
            mock.patch.object(_trace, "print", _print_nothing, create=True),
            warnings.catch_warnings(),
        ):
            # For that there is an error of ours.
            warnings.filterwarnings("ignore", message="The tensor attribute")
            yield
    finally:
        logger.setLevel(level)


def _print_nothing(*values: object, **options: object) -> None:
    """Stands for `print`."""


def _text_of(error: BaseException) -> str:
    """Returns the types and texts of an error and of what it was raised from."""
    parts = []
    seen: BaseException | None = error
    while seen is not None:
        parts.append(f"{type(seen).__name__}: {seen}")
        seen = seen.__cause__
    return "\n".join(parts)


def _cause_of(error: BaseException) -> str:
    """Returns the first sentence or so of what torch says."""
    text = str(error).strip().removeprefix("Consider annotating your code using torch._check*(). ")
    captured = re.search(r"(?:Got graph break/error:\s*|got \w+\([\"'])(.*)", text, re.DOTALL)
    first = (captured[1] if captured else text).split("\n")[0].strip().removesuffix("')")
    return first[:_LONGEST_CAUSE] or type(error).__name__


def _find_rule(text: str, line: str, called: str) -> tuple[Rule, re.Match[str]]:
    for rule in RULES:
        match = re.search(rule.torch_says, text)
        if match and re.search(rule.line, line) and re.fullmatch(rule.called or ".*", called):
            return rule, match
    raise AssertionError("the last rule fits everything")
