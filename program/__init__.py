"""The program format: a traced model as an artifact, and the contract of whoever calls it.

Contracts, and everything that reads them, import no torch. `load`, `Program` and `Method` do, and
are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipway.program.batching import Batching, BatchingEvidence, Padding
from slipway.program.container import load_contracts
from slipway.program.contract import (
    DEFAULT_METHOD,
    Contract,
    InputSpec,
    OutputSpec,
    Relation,
    Symbol,
    TensorSpec,
)
from slipway.program.errors import (
    CaseFailedError,
    ContractViolation,
    CorruptProgramError,
    DataViolation,
    DigestMismatchError,
    OperatorMismatchError,
    ProgramError,
    SlipwayError,
    UnsupportedVersionError,
    Violation,
)
from slipway.program.expressions import Expression
from slipway.program.scalar_types import ScalarType
from slipway.program.version import VERSION

if TYPE_CHECKING:
    from slipway.program.cases import verify
    from slipway.program.method import Method
    from slipway.program.program import Program, load

__all__ = [
    "DEFAULT_METHOD",
    "VERSION",
    "Batching",
    "BatchingEvidence",
    "CaseFailedError",
    "Contract",
    "ContractViolation",
    "CorruptProgramError",
    "DataViolation",
    "DigestMismatchError",
    "Expression",
    "InputSpec",
    "Method",
    "OperatorMismatchError",
    "OutputSpec",
    "Padding",
    "Program",
    "ProgramError",
    "Relation",
    "ScalarType",
    "SlipwayError",
    "Symbol",
    "TensorSpec",
    "UnsupportedVersionError",
    "Violation",
    "load",
    "load_contracts",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "verify":
        from slipway.program import cases

        return cases.verify
    if name in {"Method", "Program", "load"}:
        from slipway.program import program

        return getattr(program, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
