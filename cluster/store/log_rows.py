"""The log of all changes in SQL: what happened to jobs in order, those that are gone, and how much of it is kept.

Events of a job stay as long as the job. What is compacted are old events' snapshots and the traces of deleted jobs,
which only serve to resume a watch. Every function works inside a transaction that its caller holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, insert, select, update

from cluster.errors import OutOfRange
from cluster.lifecycle import State
from cluster.store.database import Write
from cluster.store.job_rows import jobs_by
from cluster.store.records import StoredEvent, StoredJob
from cluster.store.tables import attempts, deletions, events, idempotency, jobs, log_position, models


@dataclass(frozen=True)
class StoredChange:
    """One change of any job, in the log of all. Without `job` it was deleted, without `event` it progressed."""

    resource_version: int
    uid: str
    project: str
    job: StoredJob | None = None
    event: StoredEvent | None = None


@dataclass(frozen=True)
class Deletion:
    """What is left of a deleted job."""

    resource_version: int
    uid: str
    project: str


def head_version(connection: Connection) -> int:
    """The newest resource version."""
    return int(connection.execute(select(log_position.c.value)).scalar_one())


def check_cursor(connection: Connection, after: int) -> None:
    """OutOfRange for a resource version that this store never gave, or whose next changes it does not keep any more."""
    position = connection.execute(select(log_position)).one()
    if not 0 <= after <= position.value:
        raise OutOfRange("RESOURCE_VERSION_UNKNOWN", f"this store has no resource version {after}; begin with 0")
    if 0 < after < position.compacted:
        message = f"changes up to {position.compacted} are not kept any more, so not after {after}; begin with 0"
        raise OutOfRange("RESOURCE_VERSION_TOO_OLD", message)


def snapshot_page(connection: Connection, after: int, uid: str, limit: int) -> list[StoredJob]:
    """Jobs as they are, in the order of their resource versions, so that a cut stream can go on anywhere."""
    statement = select(jobs).where(jobs.c.resource_version > after).order_by(jobs.c.resource_version).limit(limit)
    return jobs_by(connection, statement.where(jobs.c.uid == uid) if uid else statement)


def changes(connection: Connection, after: int, uid: str, limit: int) -> list[StoredChange]:
    """What changed after a resource version, in order: events, progress (which leaves no event), deletions."""
    check_cursor(connection, after)
    logged = select(events).where(events.c.resource_version > after)
    silent = (
        select(jobs)
        .outerjoin(events, events.c.resource_version == jobs.c.resource_version)
        .where(jobs.c.resource_version > after, events.c.resource_version.is_(None))
    )
    gone = select(deletions).where(deletions.c.resource_version > after)
    if uid:
        logged, silent = logged.where(events.c.job_uid == uid), silent.where(jobs.c.uid == uid)
        gone = gone.where(deletions.c.job_uid == uid)
    logged, silent = logged.order_by(events.c.resource_version), silent.order_by(jobs.c.resource_version)
    gone = gone.order_by(deletions.c.resource_version)
    found = [_changed(event.job, event) for event in _events(connection, logged.limit(limit))]
    found += [_changed(job, None) for job in jobs_by(connection, silent.limit(limit))]
    found += [
        StoredChange(row.resource_version, row.job_uid, row.project) for row in connection.execute(gone.limit(limit))
    ]
    return sorted(found, key=lambda change: change.resource_version)[:limit]


def _changed(job: StoredJob, event: StoredEvent | None) -> StoredChange:
    return StoredChange(job.resource_version, job.uid, job.project, job, event)


def _events(connection: Connection, statement: Select[Any]) -> list[StoredEvent]:
    rows = connection.execute(statement).all()
    uids = {row.job_uid for row in rows}
    now = {job.uid: job for job in jobs_by(connection, select(jobs).where(jobs.c.uid.in_(uids)))} if uids else {}
    return [_event(row, now[row.job_uid]) for row in rows]


def _event(row: Row[Any], job: StoredJob) -> StoredEvent:
    """Of one whose snapshot was compacted the state then is known, and the job as it is now."""
    state = State(row.state)
    then = job.at(row.snapshot) if row.snapshot else replace(job, state=state, resource_version=row.resource_version)
    return StoredEvent(row.resource_version, row.reason, row.message, row.create_time_us, then)


def job_events(connection: Connection, uid: str, after: int = 0, limit: int | None = None) -> list[StoredEvent]:
    """The history of one job, oldest first."""
    mine = select(events).where(events.c.job_uid == uid, events.c.resource_version > after)
    return _events(connection, mine.order_by(events.c.resource_version).limit(limit))


def delete_job(write: Write, job: StoredJob) -> None:
    """All rows of a job, and a trace for those who watch. What it published stays, with no job to its name."""
    uid, version = job.uid, write.next_version()
    write.connection.execute(update(models).where(models.c.job_uid == uid).values(job_uid=None))
    for table in (events, attempts):
        write.connection.execute(delete(table).where(table.c.job_uid == uid))
    write.connection.execute(delete(jobs).where(jobs.c.uid == uid))
    trace = {"resource_version": version, "job_uid": uid, "project": job.project, "create_time_us": write.now_us}
    write.connection.execute(insert(deletions).values(**trace))


def find_deletion(connection: Connection, uid: str) -> Deletion | None:
    """The trace of a deleted job, while it is kept."""
    row = connection.execute(select(deletions).where(deletions.c.job_uid == uid)).first()
    return None if row is None else Deletion(row.resource_version, row.job_uid, row.project)


def deletions_after(connection: Connection, after: int, limit: int) -> list[Deletion]:
    found = select(deletions).where(deletions.c.resource_version > after).order_by(deletions.c.resource_version)
    return [Deletion(row.resource_version, row.job_uid, row.project) for row in connection.execute(found.limit(limit))]


def compact(write: Write, keep: int, most: int) -> bool:
    """Forget what is further back than the last `keep` versions, at most `most` at a time. Whether more is left."""
    position = write.connection.execute(select(log_position)).one()
    goal = int(position.value) - keep
    upto = min(goal, int(position.compacted) + most)
    if upto <= position.compacted:
        return False
    old = (events.c.resource_version > position.compacted, events.c.resource_version <= upto)
    write.connection.execute(update(events).where(*old).values(snapshot={}))
    write.connection.execute(delete(deletions).where(deletions.c.resource_version <= upto))
    write.connection.execute(update(log_position).values(compacted=upto))
    return upto < goal


def forget_requests(write: Write, before_us: int) -> None:
    """A request id that is older may be used again."""
    write.connection.execute(delete(idempotency).where(idempotency.c.create_time_us < before_us))
