"""The exit codes of the command: scripts rely on them, so each has one meaning."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell is told."""

    OK = 0
    ERROR = 1
    USAGE = 2
    JOB_FAILED = 100
    NOT_FINISHED = 101
    NOT_FOUND = 102
    CANCELLED = 103
    AUTH = 104
    UNAVAILABLE = 105
    TIMEOUT = 124
    INTERRUPTED = 130


_OF_STATE = {
    "JOB_STATE_SUCCEEDED": ExitCode.OK,
    "JOB_STATE_FAILED": ExitCode.JOB_FAILED,
    "JOB_STATE_CANCELLED": ExitCode.CANCELLED,
}
_OF_STATUS = {
    "NOT_FOUND": ExitCode.NOT_FOUND,
    "UNAUTHENTICATED": ExitCode.AUTH,
    "PERMISSION_DENIED": ExitCode.AUTH,
    "UNAVAILABLE": ExitCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": ExitCode.UNAVAILABLE,
    "INVALID_ARGUMENT": ExitCode.USAGE,
}


def of_state(state: str) -> ExitCode:
    """The code of a job's state, by its name in the contract."""
    return _OF_STATE.get(state, ExitCode.NOT_FINISHED)


def of_status(status: str) -> ExitCode:
    """The code of a gRPC status, by its name."""
    return _OF_STATUS.get(status, ExitCode.ERROR)
