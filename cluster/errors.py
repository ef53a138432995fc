"""What can go wrong in the control plane, as one small picklable tree, and the one table that maps it to gRPC status.

ClusterError
├── InvalidInput        the request is wrong; `violations` name the fields
├── NotFound            no such job, model, deployment
├── AlreadyExists       the name or request id is taken
├── PreconditionFailed  not in this state, or not with this lease
├── Conflict            somebody else changed it first
├── OutOfRange          a cursor that the store does not know
├── Unauthenticated     no token, or none that is known
├── PermissionDenied    the token does not allow it
├── ResourceExhausted   more than the caller may ask for at the moment
├── DataLoss            what is stored is not what was stored
├── StoreUnavailable    the database did not answer
├── ShuttingDown        this control plane is ending; another, or the next, will answer
├── StartUpError        the control plane cannot start as it is configured
└── RayError
    ├── RayUnreachable  Ray cannot be seen: says nothing about any job
    └── RayRefused      Ray was seen, and its answer was no
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc

DOMAIN = "athanor.dev"


@dataclass(frozen=True)
class Violation:
    """One wrong field: its path in the request, and what to write instead."""

    path: str
    message: str


def in_words(violations: Iterable[Violation]) -> str:
    """All of them in one line."""
    return "; ".join(f"{violation.path}: {violation.message}" for violation in violations)


class ClusterError(Exception):
    """Base: `reason` is an UPPER_SNAKE word for programs, `message` one sentence for people."""

    def __init__(self, reason: str, message: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(reason, message, tuple(violations))
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)

    def __str__(self) -> str:
        return self.message


class InvalidInput(ClusterError):
    """The request is wrong."""


class NotFound(ClusterError):
    """There is no such thing."""


class AlreadyExists(ClusterError):
    """The name or the request id is taken."""


class PreconditionFailed(ClusterError):
    """Not possible in the state that things are in."""


class Conflict(ClusterError):
    """The thing changed since it was read."""


class OutOfRange(ClusterError):
    """A cursor points where the store has nothing."""


class Unauthenticated(ClusterError):
    """The caller showed no token, or none that is good."""


class PermissionDenied(ClusterError):
    """The caller is known, and may not."""


class ResourceExhausted(ClusterError):
    """Too many calls, or too large a one; `retry_after_s` where waiting helps."""

    def __init__(
        self, reason: str, message: str, violations: Sequence[Violation] = (), retry_after_s: float = 0.0
    ) -> None:
        super().__init__(reason, message, violations)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[ResourceExhausted], tuple[object, ...]]:
        return type(self), (self.reason, self.message, self.violations, self.retry_after_s)


class DataLoss(ClusterError):
    """Something stored was altered from outside."""


class StoreUnavailable(ClusterError):
    """The database did not do what it was asked; asking again may help."""


class ShuttingDown(ClusterError):
    """The control plane is ending."""


class StartUpError(ClusterError):
    """The control plane cannot start."""


class RayError(ClusterError):
    """Ray did not do what it was asked."""


class RayUnreachable(RayError):
    """Ray cannot be seen at the moment. Never evidence about a job."""


class RayRefused(RayError):
    """Ray answered, and the answer was no."""


STATUS_OF: dict[type[ClusterError], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    PreconditionFailed: grpc.StatusCode.FAILED_PRECONDITION,
    Conflict: grpc.StatusCode.ABORTED,
    OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DataLoss: grpc.StatusCode.DATA_LOSS,
    StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    RayUnreachable: grpc.StatusCode.UNAVAILABLE,
    RayRefused: grpc.StatusCode.FAILED_PRECONDITION,
}


def status_of(error: ClusterError) -> grpc.StatusCode:
    """The gRPC status of an error: that of its class, or of the nearest base that has one."""
    for base in type(error).__mro__:
        if base in STATUS_OF:
            return STATUS_OF[base]
    return grpc.StatusCode.INTERNAL
