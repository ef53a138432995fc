"""The errors of `trainer`: what stopped a job, in a form that crosses process borders and can be counted.

    TrainerError              reason (UPPER_SNAKE, open set) + a sentence for people
    ├── UserError             the job is wrong: running it again changes nothing
    │   └── SpecError         the job file is wrong: one Violation for each field
    ├── CheckpointError       a checkpoint cannot be used
    └── StorageError          the storage takes no more: full, read-only, broken

Every one of them is rebuilt unchanged by pickle. No retry, no status code: that is the caller's decision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class TrainerError(Exception):
    """Base of all; `reason` is for machines, `str()` is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class UserError(TrainerError):
    """The job itself is wrong (data, model, settings); another attempt would fail in the same way."""


class CheckpointError(TrainerError):
    """A checkpoint is torn, altered, or from another topology."""


class StorageError(TrainerError):
    """A file cannot be written, or the storage not used at all; what was there before is untouched."""


@dataclass(frozen=True)
class Violation:
    """One wrong field: its path in the job file, and a sentence that names value, rule and mend."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class SpecError(UserError):
    """The job file breaks its schema, or names things that are not there."""

    def __init__(self, violations: Iterable[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("INVALID_SPEC", "\n".join(str(violation) for violation in self.violations))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[Violation, ...]]]:
        return type(self), (self.violations,)
