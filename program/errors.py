"""Errors of the program format and of contracts.

SlipwayError
├── ProgramError                 the artifact cannot be used
│   ├── CorruptProgramError      missing, truncated or malformed
│   ├── DigestMismatchError      altered since it was written
│   ├── UnsupportedVersionError  written by a newer Slipway
│   ├── OperatorMismatchError    an operator is not allowed, not there, or has changed
│   ├── CaseFailedError          it does not do here what it did where it was made
│   ├── CompiledCodeError        its compiled code cannot be used here; its graph can
│   └── NotInterpretableError    torch's interpreter cannot run a graph; Python can
├── ContractViolation            a call's shapes, dtypes or names break the contract
└── DataViolation                a call's values break what the model asserts of them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "CaseFailedError",
    "CompiledCodeError",
    "ContractViolation",
    "CorruptProgramError",
    "DataViolation",
    "DigestMismatchError",
    "NotInterpretableError",
    "OperatorMismatchError",
    "ProgramError",
    "SlipwayError",
    "UnsupportedVersionError",
    "Violation",
]


class SlipwayError(Exception):
    """Every error that Slipway raises on purpose."""


class ProgramError(SlipwayError):
    """A program cannot be loaded; the message names the file and what to do."""


class CorruptProgramError(ProgramError):
    """A program's files are missing, truncated or malformed."""


class DigestMismatchError(ProgramError):
    """A program's bytes are not those that were written."""


class UnsupportedVersionError(ProgramError):
    """A program was written by a newer release than this one can read."""


class OperatorMismatchError(ProgramError):
    """A program calls an operator that is not allowed, does not exist here, or has changed."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One way in which a call breaks a contract.

    Attributes:
      code: `missing_input`, `unknown_input`, `structure`, `constant`, `layout`, `dtype`, `rank`,
        `static_size`, `size`, `range` or `relation`.
      description: a sentence that says what it was, what is allowed and the nearest legal value.
      input: the input's name; None where several inputs are involved.
      dimension: the dimension's index; None where no single one is to blame.
      symbol: the name of the symbol that the dimension stands for, if any.
      actual: what the call had.
      allowed: what the contract allows.
      nearest: the nearest legal value; None where there is none to name.
    """

    code: str
    description: str
    input: str | None = None
    dimension: int | None = None
    symbol: str | None = None
    actual: str | None = None
    allowed: str | None = None
    nearest: str | None = None

    @property
    def field(self) -> str:
        """Returns where it is, as a path in an inference request: `inputs[x].shape[0]`."""
        if self.input is None:
            return "inputs"
        if self.dimension is None:
            part = {"dtype": ".datatype", "rank": ".shape"}.get(self.code, "")
            return f"inputs[{self.input}]{part}"
        return f"inputs[{self.input}].shape[{self.dimension}]"


class DataViolation(SlipwayError):
    """A call's values break an assertion of the model (`torch._check`), or select what is missing.

    The latter where the program checks that itself: see `load`.
    """


class CaseFailedError(ProgramError):
    """A case of a program does not give what it must."""


class CompiledCodeError(ProgramError):
    """A program has no compiled code that can be used here."""


class NotInterpretableError(ProgramError):
    """Torch's interpreter has no place for something in a graph, which Python can run."""


class ContractViolation(SlipwayError):
    """A call breaks a program's contract; `violations` holds every way in which it does."""

    def __init__(self, method: str, violations: Sequence[Violation]) -> None:
        self.method = method
        self.violations = tuple(violations)
        super().__init__("; ".join(violation.description for violation in self.violations))
