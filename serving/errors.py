"""What a server can answer instead of a result, and what keeps it from starting.

    SlipwayError
    ├── StartupError                the server cannot start; carries the process's exit code
    └── ServingError                a request that gets no result; carries a gRPC status
        ├── InvalidRequestError     INVALID_ARGUMENT    the caller must change the request
        │   └── ContractError       INVALID_ARGUMENT    it breaks the program's contract
        ├── NotFoundError           NOT_FOUND           no such model, version or region
        ├── AlreadyExistsError      ALREADY_EXISTS      there is a region of this name
        ├── UnsupportedError        UNIMPLEMENTED       a part of the protocol that is not served
        ├── UnauthenticatedError    UNAUTHENTICATED     the caller must show who it is
        ├── PermissionDeniedError   PERMISSION_DENIED   not for this caller
        ├── PreconditionError       FAILED_PRECONDITION not the way this server is run
        ├── UnavailableError        UNAVAILABLE         loading or draining: try again, or elsewhere
        ├── ResourceExhaustedError  RESOURCE_EXHAUSTED  too large for the device or the protocol
        │   └── OverloadedError     RESOURCE_EXHAUSTED  more work than can be done: try again later
        ├── DeadlineError           DEADLINE_EXCEEDED   its turn did not come in time
        ├── CancelledError          CANCELLED           the client has gone; nobody reads this
        └── InternalError           INTERNAL            the model or the server failed
            └── DeviceError         INTERNAL            the device failed, and this process with it

A status travels in HTTP/2 trailers, of which peers accept about 8 KiB. So texts and details are cut
to size here: a status that is too large reaches the client as another one.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from slipway.program import ContractViolation
from slipway.program.errors import SlipwayError

__all__ = [
    "AlreadyExistsError",
    "CancelledError",
    "ContractError",
    "DeadlineError",
    "DeviceError",
    "FieldViolation",
    "InternalError",
    "InvalidRequestError",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "PreconditionError",
    "ResourceExhaustedError",
    "ServingError",
    "StartupError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
    "quoted",
    "status_message",
]

_MESSAGE_LIMIT = 1800
"""Bytes of a status's text, as percent-encoded in the trailer."""

_DETAILS_LIMIT = 3000
"""Bytes of a status's details; base64 makes four thirds of them."""

_ELLIPSIS = " [...]"

_MOST_LISTED = 20
"""Reasons that are written out."""

_NAME_LIMIT = 80
"""Characters that are repeated of a name that the client made up."""


class StartupError(SlipwayError):
    """The server cannot start, or cannot go on.

    Attributes:
      exit_code: 2 where the command line or the repository must change, else 1.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    @classmethod
    def of_address(cls, host: str, port: int, error: OSError) -> StartupError:
        """Returns the error for an address that the system does not let the server listen on."""
        bracketed = f"[{host}]" if ":" in host else host
        reason = error.strerror or os.strerror(error.errno or 0)
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            advice = "--port takes another port, 0 for any that is free"
        else:
            advice = "--host takes a name or an address of this machine"
        is_lasting = isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME
        return cls(
            f"cannot listen on {bracketed}:{port}: {reason}; {advice}",
            exit_code=2 if is_lasting else 1,
        )


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing that is wrong with a request.

    Attributes:
      field: where, as a path in the request: `inputs[x].shape[0]`.
      description: a sentence that says what it was and what is allowed.
      reason: a word for programs, such as `RANK`.
    """

    field: str
    description: str
    reason: str


class ServingError(SlipwayError):
    """A request that gets no result.

    Attributes:
      status: the gRPC status code.
      violations: what is wrong with the request, one entry for each field at fault.
    """

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(self, message: str, violations: Sequence[FieldViolation] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns what is sent beside the status."""
        return ()


class InvalidRequestError(ServingError):
    """The caller must change the request."""

    status = grpc.StatusCode.INVALID_ARGUMENT

    @classmethod
    def of(cls, subject: str, violations: Sequence[FieldViolation]) -> InvalidRequestError:
        """Returns the error for the `violations` of a request to `subject`.

        Its text lists the first of them, and says how many there are.
        """
        return cls(_listed(subject, [item.description for item in violations]), violations)


class ContractError(InvalidRequestError):
    """The request's shapes, dtypes or names break the program's contract."""

    @classmethod
    def from_violation(cls, subject: str, error: ContractViolation) -> ContractError:
        """Returns the error that answers `error`, raised for a request to `subject`."""
        violations = [
            FieldViolation(item.field, item.description, item.code.upper())
            for item in error.violations
        ]
        return cls(_listed(subject, [item.description for item in violations]), violations)


class NotFoundError(ServingError):
    """There is no such model or version, or no such region of shared memory."""

    status = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(ServingError):
    """There is a region of shared memory of this name."""

    status = grpc.StatusCode.ALREADY_EXISTS


class UnsupportedError(ServingError):
    """The request needs a part of the protocol that this server does not have."""

    status = grpc.StatusCode.UNIMPLEMENTED


class UnauthenticatedError(ServingError):
    """The caller must show who it is."""

    status = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(ServingError):
    """The caller may not ask for this."""

    status = grpc.StatusCode.PERMISSION_DENIED


class PreconditionError(ServingError):
    """The server is not run in a way in which this can be done."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class UnavailableError(ServingError):
    """Not now: the server or the model is loading or draining."""

    status = grpc.StatusCode.UNAVAILABLE


class ResourceExhaustedError(ServingError):
    """The request or its result is too large for the device or for the protocol."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class OverloadedError(ResourceExhaustedError):
    """There is more work than the server can do, and this request was not taken on.

    Attributes:
      retry_after: when to try again, in seconds from now.
      time_left: the seconds that the request had, if they were too few; None if it was refused
        however many it had.
    """

    def __init__(self, message: str, *, retry_after: float, time_left: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.time_left = time_left

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        # What gRPC clients that retry by themselves go by
        # (https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback).
        return (("grpc-retry-pushback-ms", str(max(1, round(self.retry_after * 1000)))),)


class DeadlineError(ServingError):
    """The request's time was over before its turn came; it was not run."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledError(ServingError):
    """The client has gone; this is counted, and nobody reads it."""

    status = grpc.StatusCode.CANCELLED


class InternalError(ServingError):
    """The model or the server failed; the log has the cause, and the client does not."""


class DeviceError(InternalError):
    """The device failed in a way that only a new process heals."""


def quoted(name: str) -> str:
    """Returns a client's `name` for a message: in quotes, printable, and not too long."""
    if len(name) > _NAME_LIMIT:
        name = name[:_NAME_LIMIT] + "..."
    return repr(name)


def status_message(error: ServingError) -> status_pb2.Status:
    """Returns `error` as a `google.rpc.Status`.

    It has `BadRequest` details if the error has violations, and `RetryInfo` if it says when to try
    again.
    """
    text = _cut(str(error), _MESSAGE_LIMIT)
    status = status_pb2.Status(code=error.status.value[0], message=text)
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        size = 0
        for item in error.violations:
            entry = error_details_pb2.BadRequest.FieldViolation(
                field=_cut(item.field, 200),
                description=_cut(item.description, 600),
                reason=item.reason,
            )
            size += entry.ByteSize()
            if size > _DETAILS_LIMIT - len(text.encode()):
                break
            bad_request.field_violations.append(entry)
        if bad_request.field_violations:
            status.details.add().Pack(bad_request)
    if isinstance(error, OverloadedError):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after))
        status.details.add().Pack(retry)
    return status


def _listed(subject: str, descriptions: Sequence[str]) -> str:
    if len(descriptions) == 1:
        return f"{subject} refused the request: {descriptions[0]}"
    lines = "".join(f"\n- {description}" for description in descriptions[:_MOST_LISTED])
    if len(descriptions) > _MOST_LISTED:
        lines += f"\n- and {len(descriptions) - _MOST_LISTED} more"
    return f"{subject} refused the request for {len(descriptions)} reasons:{lines}"


def _cut(text: str, limit: int) -> str:
    """Returns as much of `text` as takes `limit` bytes in a trailer."""
    if 3 * len(text.encode(errors="replace")) <= limit:
        return text  # whatever there is to escape in it
    kept = size = 0
    for index, character in enumerate(text):
        plain = " " <= character <= "~" and character != "%"
        size += 1 if plain else 3 * len(character.encode(errors="replace"))
        if size <= limit - len(_ELLIPSIS):
            kept = index + 1
        elif size > limit:
            return text[:kept] + _ELLIPSIS
    return text
