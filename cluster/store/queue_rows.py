"""The queue, quotas and the scheduler's last decision in SQL.

Every function works inside a transaction that its caller holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from cluster.lifecycle import State
from cluster.scheduler import Quota
from cluster.store.database import Write
from cluster.store.job_rows import jobs_by
from cluster.store.records import StoredJob
from cluster.store.tables import jobs, projects, standings

_ONLY = 1
"""The id of the one row."""


def heads(connection: Connection, now_us: int, most: int) -> list[StoredJob]:
    """The first `most` jobs of each project's queue that are not held, in their order."""
    waiting = select(jobs.c.project).where(jobs.c.state == State.QUEUED.value).distinct()
    found: list[StoredJob] = []
    for project in sorted(connection.execute(waiting).scalars()):
        first = select(jobs).where(
            jobs.c.state == State.QUEUED.value,
            jobs.c.project == project,
            (jobs.c.hold_until_us.is_(None)) | (jobs.c.hold_until_us <= now_us),
        )
        found += jobs_by(connection, first.order_by(jobs.c.queue_key, jobs.c.seq).limit(most))
    return found


def num_waiting(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).where(jobs.c.state == State.QUEUED.value)).scalar_one())


def states_of(connection: Connection, uids: list[str]) -> dict[str, State]:
    """Of the jobs that are there."""
    rows = connection.execute(select(jobs.c.uid, jobs.c.state).where(jobs.c.uid.in_(uids)))
    return {row.uid: State(row.state) for row in rows}


def quotas(connection: Connection) -> dict[str, Quota]:
    """Of projects that have one; None in a column is no limit."""
    found = {}
    for row in connection.execute(select(projects)):
        limits = {"cpus": row.cpus, "gpus": row.gpus, "jobs": row.running_jobs}
        found[row.name] = Quota(weight=row.weight, **{key: value for key, value in limits.items() if value is not None})
    return found


def set_quota(write: Write, name: str, limits: Mapping[str, float | None], weight: float) -> None:
    """All of it: what is None is without limit."""
    values = {"cpus": limits.get("cpus"), "gpus": limits.get("gpus"), "running_jobs": limits.get("jobs")}
    write.changed = True
    changed = write.connection.execute(update(projects).where(projects.c.name == name).values(**values, weight=weight))
    if changed.rowcount == 0:
        write.connection.execute(insert(projects).values(name=name, **values, weight=weight))


def save_standings(write: Write, waiting: Mapping[str, tuple[int, str]]) -> None:
    write.connection.execute(delete(standings))
    document = {uid: list(standing) for uid, standing in waiting.items()}
    write.connection.execute(insert(standings).values(id=_ONLY, decision_time_us=write.now_us, waiting=document))


def load_standings(connection: Connection) -> tuple[int, dict[str, tuple[int, str]]]:
    """When it was decided (0: never), and uid -> (position, reason) in order."""
    row: Any = connection.execute(select(standings)).one_or_none()
    if row is None:
        return 0, {}
    return row.decision_time_us, {uid: (position, reason) for uid, (position, reason) in row.waiting.items()}
