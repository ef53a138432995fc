"""How many jobs there are, by state and project: for whoever looks at the whole, not at one of them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from cluster.lifecycle import State
from cluster.store.tables import jobs


@dataclass(frozen=True)
class JobCount:
    """Of one state in one project."""

    state: State
    project: str
    jobs: int
    oldest_us: int | None
    """Since when the first of them waits; None for states that do not wait."""


def job_counts(connection: Connection) -> list[JobCount]:
    """All of them; what has none is left out."""
    counted = select(jobs.c.state, jobs.c.project, func.count(), func.min(jobs.c.queue_since_us))
    rows = connection.execute(counted.group_by(jobs.c.state, jobs.c.project))
    return [JobCount(State(state), project, count, oldest) for state, project, count, oldest in rows]
