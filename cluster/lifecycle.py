"""The states of a job and the edges between them: one frozen table, checked at every transition.

Nothing else in the code base decides which state may follow which. *Unreachable* is a condition, never a state.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """Where a job stands; the names are those of `athanor.v1.JobState` without the prefix."""

    QUEUED = "QUEUED"
    ADMITTED = "ADMITTED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
LIVE = frozenset(State) - TERMINAL
# States that hold cluster resources: the scheduler counts them.
ACTIVE = LIVE - {State.QUEUED, State.PAUSED}
# Those to which resources are promised, whether or not an attempt uses them yet.
CLAIMING = ACTIVE - {State.PAUSING, State.CANCELLING}
# The reason of an attempt whose driver was told from outside to end: it says nothing about the job.
DRIVER_TERMINATED = "DRIVER_TERMINATED"
# The reason of a job that pauses to make room: it goes back into the queue by itself.
PREEMPTED = "PREEMPTED"

EDGES = MappingProxyType(
    {
        State.QUEUED: frozenset({State.ADMITTED, State.PAUSED, State.FAILED, State.CANCELLING}),
        State.ADMITTED: frozenset({State.STARTING, State.PAUSING, State.FAILED, State.CANCELLING}),
        State.STARTING: frozenset(
            {
                *(State.RUNNING, State.RECOVERING, State.PAUSING, State.CANCELLING),
                *(State.SUCCEEDED, State.FAILED, State.CANCELLED),
            }
        ),
        State.RUNNING: frozenset(
            {State.RECOVERING, State.PAUSING, State.SUCCEEDED, State.FAILED, State.CANCELLED, State.CANCELLING}
        ),
        State.RECOVERING: frozenset({State.STARTING, State.PAUSING, State.FAILED, State.CANCELLING}),
        State.PAUSING: frozenset({State.PAUSED, State.SUCCEEDED, State.FAILED, State.CANCELLED, State.CANCELLING}),
        State.PAUSED: frozenset({State.QUEUED, State.CANCELLING}),
        # A job that ended well before it saw the wish to cancel has ended well.
        State.CANCELLING: frozenset({State.CANCELLED, State.SUCCEEDED}),
        State.SUCCEEDED: frozenset(),
        State.FAILED: frozenset(),
        State.CANCELLED: frozenset(),
    }
)


def check(source: State, target: State) -> None:
    """Refuse an edge that the table does not have. It is our mistake when this raises, never a user's."""
    if target not in EDGES[source]:
        raise AssertionError(f"no edge {source} -> {target} in the lifecycle of a job")


def mermaid() -> str:
    """The table as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2", "    [*] --> QUEUED"]
    lines += [f"    {source} --> {target}" for source in State for target in State if target in EDGES[source]]
    lines += [f"    {state} --> [*]" for state in State if state in TERMINAL]
    return "\n".join(lines) + "\n"
