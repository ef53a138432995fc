"""Which of the waiting jobs may begin now: a pure function over a snapshot. Reads no store, starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WaitingJob:
    """A job in the queue."""

    uid: str
    priority: int
    seq: int
    """Grows with the order of creation."""


@dataclass(frozen=True)
class Snapshot:
    """All that a decision depends on."""

    waiting: Sequence[WaitingJob]
    num_running: int
    """Jobs that hold cluster resources."""
    max_running_jobs: int


def admit(snapshot: Snapshot) -> list[str]:
    """The uids to admit, in order: higher priority first, the older one among equals, while there is room."""
    room = max(0, snapshot.max_running_jobs - snapshot.num_running)
    queue = sorted(snapshot.waiting, key=lambda job: (-job.priority, job.seq))
    return [job.uid for job in queue[:room]]
