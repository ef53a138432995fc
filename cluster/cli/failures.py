"""The boundary of the command: known errors become clean lines on stderr and an exit code, never a traceback."""

from __future__ import annotations

import sys

from cluster.cli.exit_codes import ExitCode, of_status
from cluster.errors import ClusterError, InvalidInput
from cluster.rpc import RAY_IS_AWAY, NotFinished, RequestFailed
from trainer.errors import SpecError, TrainerError

KNOWN = (ClusterError, TrainerError)


def report(error: ClusterError | TrainerError) -> ExitCode:
    """Say what was wrong and its reason, field by field where there are fields; the exit code for it."""
    violations = [(each.path, each.message) for each in getattr(error, "violations", ())]
    lines = [f"  {path}: {message}" for path, message in violations]
    heading = "the job file is wrong" if isinstance(error, SpecError) else _heading(error.message, violations)
    sys.stderr.write("\n".join([f"error: [{error.reason}] {heading}", *lines]) + "\n")
    return code_of(error)


def code_of(error: ClusterError | TrainerError) -> ExitCode:
    """The exit code of an error."""
    if isinstance(error, RequestFailed) and error.reason in RAY_IS_AWAY:
        return ExitCode.ERROR
    if isinstance(error, RequestFailed):
        return of_status(error.code.name)
    if isinstance(error, NotFinished):
        return ExitCode.TIMEOUT
    return ExitCode.USAGE if isinstance(error, InvalidInput | SpecError) else ExitCode.ERROR


def _heading(message: str, violations: list[tuple[str, str]]) -> str:
    """The message, or a short one where the lines below repeat it."""
    repeats = violations and all(words in message for _, words in violations)
    return "the request is wrong" if repeats else message
