"""What can go wrong when a model is exported.

Every failure that its user can do something about is an `ExportError`: its kind, the user's own
line, why, and what to do. Anything else that escapes `export` is a defect of Slipway.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from slipway.export.catalogue import find_page
from slipway.program.errors import SlipwayError

__all__ = ["ExportError", "ExportErrorKind", "SourceLine"]


class ExportErrorKind(enum.Enum):
    """What kind of failure it is; the value is how it is called in messages and docs."""

    UNSUPPORTED_PYTHON = "unsupported Python feature"
    DATA_DEPENDENT_CONTROL_FLOW = "data-dependent control flow"
    DATA_DEPENDENT_SHAPE = "data-dependent shape"
    CONSTRAINT_VIOLATION = "constraint violation"
    UNSUPPORTED_OPERATOR = "unsupported operator"
    CUSTOM_OPERATOR_NOT_DECLARED = "custom operator not declared"
    INVALID_SPEC = "invalid spec"
    DIFFERS_FROM_EAGER = "differs from eager"


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of the user's code.

    Attributes:
      file: relative to the workspace where it lies in it, else the file's name alone.
      line: counted from 1.
      text: the line itself, stripped; empty where it cannot be read.
    """

    file: str
    line: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class ExportError(SlipwayError):
    """A model cannot be exported as asked.

    Attributes:
      kind: what kind of failure it is.
      reason: why, in a sentence.
      advice: what to change.
      source: the line of the user's code that is to blame, where there is one.
      cause: what torch says about it, where the failure comes from torch.
      page: where docs/catalogue explains it, with an example that fails and one that works.
    """

    def __init__(
        self,
        kind: ExportErrorKind,
        reason: str,
        advice: str,
        source: SourceLine | None = None,
        *,
        cause: str = "",
        page: str | None = None,
    ) -> None:
        self.kind = kind
        self.reason = reason
        self.advice = advice
        self.source = source
        self.cause = cause
        self.page = page or find_page(kind.value, reason, "" if source is None else source.text)
        lines = [f"{kind.value}: {reason}"]
        if source is not None:
            lines.append(f"  at {source}" + (f": {source.text}" if source.text else ""))
        lines.append(f"  what to do: {advice}")
        lines.append(f"  see Slipway's {self.page}")
        if cause:
            lines.append(f"  torch says: {cause}")
        super().__init__("\n".join(lines))
