"""Jobs and attempts in SQL: reading them, and the one way in which a job changes, with its line in the log.

Every function works inside a transaction that its caller holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, insert, select, union, update

from cluster.errors import Conflict, NotFound
from cluster.lifecycle import ACTIVE, PREEMPTED, TERMINAL, State, check
from cluster.scheduler import queue_key
from cluster.store import alias_rows, dependency_rows
from cluster.store.database import Write
from cluster.store.records import Change, NewJob, StoredAttempt, StoredJob
from cluster.store.tables import attempts, events, jobs

_EMPTY_JOB: Mapping[str, Any] = {
    "reason": "",
    "message": "",
    "conditions": [],
    "published_model": "",
    "report_path": "",
    "infrastructure_failures": 0,
    "user_failures": 0,
    "preemptions": 0,
    "ran_us": 0,
}
_UNSET: Mapping[str, Any] = {
    column.name: None for column in jobs.c if column.nullable and column.name not in _EMPTY_JOB
}
_ADD_JOBS, _ADD_EVENTS = insert(jobs), insert(events)
_NUMBERS = (
    select(jobs.c.seq)
    .where(jobs.c.resource_version.between(bindparam("first"), bindparam("last")))
    .order_by(jobs.c.resource_version)
)


def _attempts_of(connection: Connection, uids: Sequence[str]) -> dict[str, list[StoredAttempt]]:
    found: dict[str, list[StoredAttempt]] = {uid: [] for uid in uids}
    query = select(attempts).where(attempts.c.job_uid.in_(uids)).order_by(attempts.c.job_uid, attempts.c.number)
    for row in connection.execute(query):
        found[row.job_uid].append(StoredAttempt(**row._mapping))
    return found


def _with_attempts(connection: Connection, rows: Iterable[Row[Any]]) -> list[StoredJob]:
    mappings = [dict(row._mapping) for row in rows]
    if not mappings:
        return []
    found = _attempts_of(connection, [mapping["uid"] for mapping in mappings])
    return [
        StoredJob(**{**mapping, "state": State(mapping["state"])}, attempts=tuple(found[mapping["uid"]]))
        for mapping in mappings
    ]


def jobs_by(connection: Connection, query: Select[Any]) -> list[StoredJob]:
    """Whole jobs of a query for rows of `jobs`, in its order."""
    return _with_attempts(connection, connection.execute(query))


def get_job(connection: Connection, uid: str) -> StoredJob:
    """One job; NotFound / JOB_NOT_FOUND."""
    found = jobs_by(connection, select(jobs).where(jobs.c.uid == uid))
    if not found:
        raise NotFound("JOB_NOT_FOUND", f"there is no job {uid!r}; `athanor job list` shows those there are")
    return found[0]


def jobs_in(connection: Connection, states: Iterable[State]) -> list[StoredJob]:
    """All jobs in these states, oldest first."""
    return jobs_by(
        connection, select(jobs).where(jobs.c.state.in_([state.value for state in states])).order_by(jobs.c.seq)
    )


def unreleased(connection: Connection) -> list[StoredJob]:
    """Jobs that are to hold nothing on the cluster, and may do so still: ended, paused, or back in the queue."""
    holding = select(attempts.c.job_uid).where(attempts.c.released.is_(False))
    idle = jobs.c.state.not_in([state.value for state in ACTIVE])
    return jobs_by(connection, select(jobs).where(idle, jobs.c.uid.in_(holding)).order_by(jobs.c.seq))


def to_tend(connection: Connection) -> list[StoredJob]:
    """Whoever holds something on the cluster, or may do so still, or comes back by itself; oldest first."""
    is_active = jobs.c.state.in_([state.value for state in ACTIVE])
    is_back_soon = (jobs.c.state == State.PAUSED.value) & (jobs.c.reason == PREEMPTED)
    holding = select(attempts.c.job_uid).where(attempts.c.released.is_(False))
    # By uid, each part from an index of its own: one condition with OR would read every job there ever was.
    parts = (select(jobs.c.uid).where(is_active), select(jobs.c.uid).where(is_back_soon), holding)
    return jobs_by(connection, select(jobs).where(jobs.c.uid.in_(union(*parts))).order_by(jobs.c.seq))


def insert_job(write: Write, new: NewJob) -> StoredJob:
    """Store a job as QUEUED, with the first line of its history."""
    return insert_jobs(write, [new])[0]


def insert_jobs(write: Write, new: Sequence[NewJob]) -> list[StoredJob]:
    """As `insert_job`, in this order; each statement is made once for all of them."""
    if not new:
        return []
    last = write.next_version(len(new))
    first = last - len(new) + 1
    rows = [_new_row(write, one, version) for version, one in enumerate(new, start=first)]
    write.connection.execute(_ADD_JOBS, rows)
    numbers = write.connection.scalars(_NUMBERS, {"first": first, "last": last}).all()
    stored = [
        StoredJob(**{**_UNSET, **row, "state": State.QUEUED}, seq=number)
        for row, number in zip(rows, numbers, strict=True)
    ]
    write.connection.execute(
        insert(events), [_line(write, job, "CREATED", "stored; waits for its turn") for job in stored]
    )
    return stored


def _new_row(write: Write, new: NewJob, version: int) -> dict[str, Any]:
    return {
        **_EMPTY_JOB,
        **vars(new),
        "depends_on": list(new.depends_on),
        "resolved_models": {**new.resolved_models, **dependency_rows.models_there(write, new)},
        "state": State.QUEUED.value,
        "create_time_us": write.now_us,
        "update_time_us": write.now_us,
        "queue_since_us": write.now_us,
        "queue_key": queue_key(new.priority, write.now_us / 1e6, 0, write.rules)[0],
        "num_unmet": dependency_rows.note(write, new.uid, new.depends_on),
        "resource_version": version,
    }


def apply(write: Write, job: StoredJob, change: Change) -> StoredJob:
    """Make one step, if the job is still what the step was decided on. Conflict / JOB_CHANGED otherwise."""
    version = write.next_version()
    values: dict[str, Any] = dict(change.job)
    if change.publication is not None:
        model = alias_rows.publish(write, change.publication, job.uid)
        values["published_model"] = model.reference
    values |= _state_values(write, job, change)
    values |= _place(write, job, values)
    values |= {"resource_version": version, "update_time_us": write.now_us}
    guarded = update(jobs).where(jobs.c.uid == job.uid, jobs.c.resource_version == job.resource_version)
    if write.connection.execute(guarded.values(**values)).rowcount != 1:
        raise Conflict("JOB_CHANGED", f"job {job.uid} changed since it was read")
    _apply_to_attempts(write, job, change)
    if change.state in TERMINAL:
        _end(write, job, change.state, values.get("published_model", job.published_model))
    after = _log(write, job.uid, change.reason, change.message)
    write.moves.append((job, after))
    return after


def _end(write: Write, job: StoredJob, state: State, published_model: str) -> None:
    """It keeps nobody waiting any more, and hands over what it published."""
    for uid, models in dependency_rows.settle(write, job, state, published_model).items():
        resolved = {**get_job(write.connection, uid).resolved_models, **models}
        values = {"resolved_models": resolved, "resource_version": write.next_version(), "update_time_us": write.now_us}
        write.connection.execute(update(jobs).where(jobs.c.uid == uid).values(**values))
        named = ", ".join(f"{reference} = {version}" for reference, version in sorted(models.items()))
        _log(write, uid, "MODEL_CAME", f"{named}, published by {job.uid}")


def _place(write: Write, job: StoredJob, values: Mapping[str, Any]) -> dict[str, Any]:
    """Its place in the queue, where one of the things changes by which it is counted."""
    since_us = values.get("queue_since_us", job.queue_since_us)
    if since_us is None or not values.keys() & {"priority", "queue_since_us"}:
        return {}
    return {"queue_key": queue_key(values.get("priority", job.priority), since_us / 1e6, job.seq, write.rules)[0]}


def _state_values(write: Write, job: StoredJob, change: Change) -> dict[str, Any]:
    if change.state is None:
        return {}
    check(job.state, change.state)
    values: dict[str, Any] = {"state": change.state.value, "reason": change.reason, "message": change.message}
    if change.state in TERMINAL:
        values["end_time_us"] = write.now_us
    if change.state is State.RUNNING:
        values["running_since_us"] = write.now_us
    elif job.state is State.RUNNING:
        values |= {"ran_us": job.ran_until(write.now_us), "running_since_us": None}
    return values


def _apply_to_attempts(write: Write, job: StoredJob, change: Change) -> None:
    if change.opens_attempt is not None:
        write.connection.execute(insert(attempts).values(**asdict(change.opens_attempt)))
    if change.attempt and job.last_attempt is not None:
        update_attempt(write.connection, job.last_attempt, change.attempt)


def update_attempt(connection: Connection, attempt: StoredAttempt, values: Mapping[str, object]) -> None:
    """Change columns of an attempt; no line in the history."""
    at = (attempts.c.job_uid == attempt.job_uid, attempts.c.number == attempt.number)
    connection.execute(update(attempts).where(*at).values(**values))


def mark_attempt(connection: Connection, job: StoredJob, values: Mapping[str, object]) -> None:
    """As `update_attempt` for the last one, if the job and its attempt's token are still what the caller read."""
    check_unchanged(connection, job)
    if job.last_attempt is None:
        return
    known = get_job(connection, job.uid).last_attempt
    if known is None or known.lease_token_sha256 != job.last_attempt.lease_token_sha256:
        raise Conflict("JOB_CHANGED", f"job {job.uid} changed since it was read")
    update_attempt(connection, job.last_attempt, values)


def check_unchanged(connection: Connection, job: StoredJob) -> None:
    """Conflict / JOB_CHANGED if the job is not any more what the caller read."""
    version = connection.execute(select(jobs.c.resource_version).where(jobs.c.uid == job.uid)).scalar_one_or_none()
    if version != job.resource_version:
        raise Conflict("JOB_CHANGED", f"job {job.uid} changed since it was read")


def touch_progress(write: Write, uid: str, progress: Mapping[str, Any]) -> None:
    """Store how far a job is: a new resource version, but no line in the history."""
    values = {"progress": progress, "resource_version": write.next_version(), "update_time_us": write.now_us}
    write.connection.execute(update(jobs).where(jobs.c.uid == uid).values(**values))


def _log(write: Write, uid: str, reason: str, message: str) -> StoredJob:
    job = get_job(write.connection, uid)
    write.connection.execute(insert(events).values(**_line(write, job, reason, message)))
    return job


def _line(write: Write, job: StoredJob, reason: str, message: str) -> dict[str, Any]:
    line = {"resource_version": job.resource_version, "job_uid": job.uid, "state": job.state.value}
    return {**line, "reason": reason, "message": message, "create_time_us": write.now_us, "snapshot": job.snapshot()}
