"""Which jobs wait for which others, in SQL: a row for each job that a waiting one still needs.

A job knows the count of its rows (`num_unmet`), so that the queue need not look; -1: one of them will never succeed.
Who gets what those publish is told here too. Every function works inside a write transaction that its caller holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, insert, select, update

from cluster.awaited_models import from_dependency
from cluster.lifecycle import TERMINAL, State
from cluster.store.database import Write
from cluster.store.records import NewJob, StoredJob
from cluster.store.tables import dependencies, jobs

DOOMED = -1


def note(write: Write, uid: str, depends_on: Sequence[str]) -> int:
    """What a new job still needs: how many have to succeed yet, or `DOOMED`."""
    if not depends_on:
        return 0
    rows = write.connection.execute(select(jobs.c.uid, jobs.c.state).where(jobs.c.uid.in_(depends_on)))
    states = {row.uid: State(row.state) for row in rows}
    if any(state in TERMINAL - {State.SUCCEEDED} for state in states.values()) or len(states) < len(set(depends_on)):
        return DOOMED
    unmet = [on for on, state in states.items() if state is not State.SUCCEEDED]
    if unmet:
        write.connection.execute(insert(dependencies), [{"job_uid": uid, "on_uid": on} for on in unmet])
    return len(unmet)


def models_there(write: Write, new: NewJob) -> dict[str, str]:
    """What the new job names and waits for, of those that succeeded after it was looked at: reference -> version."""
    if not new.depends_on:
        return {}
    ended = (jobs.c.uid.in_(new.depends_on), jobs.c.state == State.SUCCEEDED.value, jobs.c.published_model != "")
    found: dict[str, str] = {}
    for row in write.connection.execute(select(jobs.c.spec, jobs.c.published_model).where(*ended).order_by(jobs.c.seq)):
        found |= dict.fromkeys(from_dependency(new.spec, row.spec), row.published_model)
    return {text: version for text, version in found.items() if text not in new.resolved_models}


def settle(write: Write, job: StoredJob, state: State, published_model: str) -> dict[str, dict[str, str]]:
    """A job has ended: whoever waits for it waits no more, or in vain.

    By uid who gets what of it: reference -> version, wherever the alias points later.
    """
    found = _heirs(write, job, published_model) if published_model else {}
    waiting = jobs.c.uid.in_(select(dependencies.c.job_uid).where(dependencies.c.on_uid == job.uid))
    left = jobs.c.num_unmet - 1 if state is State.SUCCEEDED else DOOMED
    write.connection.execute(update(jobs).where(waiting, jobs.c.num_unmet > 0).values(num_unmet=left))
    gone = (dependencies.c.on_uid == job.uid) | (dependencies.c.job_uid == job.uid)
    write.connection.execute(delete(dependencies).where(gone))
    return found


def _heirs(write: Write, job: StoredJob, published_model: str) -> dict[str, dict[str, str]]:
    """Who waits for it and names what it publishes."""
    waiting = dependencies.c.job_uid == jobs.c.uid
    query = select(jobs.c.uid, jobs.c.spec).join(dependencies, waiting).where(dependencies.c.on_uid == job.uid)
    rows = write.connection.execute(query.order_by(jobs.c.seq)).all()
    found = {row.uid: dict.fromkeys(from_dependency(row.spec, job.spec), published_model) for row in rows}
    return {uid: models for uid, models in found.items() if models}
