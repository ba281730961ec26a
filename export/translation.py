"""Turns what torch raises when it cannot trace a model into an `ExportError`."""

from __future__ import annotations

import sympy
from torch._dynamo.exc import Unsupported, UserError, UserErrorType
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from slipway.export.errors import ExportError, ExportErrorKind
from slipway.export.sources import called_by_user_line, user_line_of_exception

__all__ = ["translate"]


_ADVICE = {
    ExportErrorKind.DATA_DEPENDENT_CONTROL_FLOW: (
        "a graph has one path: choose by torch.where, or give both branches to torch.cond; a "
        "decision that does not depend on a tensor's values may stay as it is"
    ),
    ExportErrorKind.DATA_DEPENDENT_SHAPE: (
        "use a form whose result has a size known from its inputs (a mask in place of a "
        "selection), or state the size's bounds with torch._check"
    ),
    ExportErrorKind.UNSUPPORTED_OPERATOR: (
        "use operators of torch (aten), or give the operator a fake kernel with "
        "torch.library.register_fake"
    ),
    ExportErrorKind.UNSUPPORTED_PYTHON: (
        "compute with torch operators on tensors only; move everything else out of the model or "
        "into its constructor"
    ),
    ExportErrorKind.CONSTRAINT_VIOLATION: (
        "declare the dimension as the model needs it, or change the model"
    ),
    ExportErrorKind.INVALID_SPEC: "correct the example arguments or dynamic_shapes",
}

_USER_ERROR_KINDS = {
    UserErrorType.DYNAMIC_CONTROL_FLOW: ExportErrorKind.DATA_DEPENDENT_CONTROL_FLOW,
    UserErrorType.CONSTRAINT_VIOLATION: ExportErrorKind.CONSTRAINT_VIOLATION,
    UserErrorType.DYNAMIC_DIM: ExportErrorKind.CONSTRAINT_VIOLATION,
    UserErrorType.INVALID_INPUT: ExportErrorKind.INVALID_SPEC,
    UserErrorType.INVALID_OUTPUT: ExportErrorKind.INVALID_SPEC,
}


def _kind_of(error: BaseException) -> ExportErrorKind:
    match error:
        case UserError(error_type=error_type):
            return _USER_ERROR_KINDS.get(error_type, ExportErrorKind.UNSUPPORTED_PYTHON)
        case DataDependentOutputException():
            return ExportErrorKind.DATA_DEPENDENT_CONTROL_FLOW
        case GuardOnDataDependentSymNode():
            # A comparison with a truth value is what `if tensor:` becomes; `if tensor.item() > 3:`
            # asks a symbolic value itself.
            boolean = isinstance(error.cond, sympy.Eq) and error.cond.rhs in (sympy.S.One, 1)
            if boolean or called_by_user_line(error) == "__bool__":
                return ExportErrorKind.DATA_DEPENDENT_CONTROL_FLOW
            return ExportErrorKind.DATA_DEPENDENT_SHAPE
        case DynamicOutputShapeException():
            return ExportErrorKind.DATA_DEPENDENT_SHAPE
        case UnsupportedOperatorException() | NotImplementedError():
            return ExportErrorKind.UNSUPPORTED_OPERATOR
        case Unsupported():
            return ExportErrorKind.UNSUPPORTED_PYTHON
        case _:
            return ExportErrorKind.UNSUPPORTED_PYTHON


def translate(error: Exception) -> ExportError:
    kind = _kind_of(error)
    # Torch's first paragraph says what; the rest is advice on its own tools.
    reason = str(error).strip().split("\n\n")[0].strip() or type(error).__name__
    return ExportError(kind, reason, _ADVICE[kind], user_line_of_exception(error))
