"""Which jobs wait for which others, in SQL: a row for each job that a waiting one still needs.

A job knows the count of its rows (`num_unmet`), so that the queue need not look; -1: one of them will never succeed.
Every function works inside a write transaction that its caller holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, insert, select, update

from cluster.lifecycle import TERMINAL, State
from cluster.store.database import Write
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


def settle(write: Write, uid: str, state: State) -> None:
    """A job has ended: whoever waits for it waits no more, or in vain."""
    waiting = jobs.c.uid.in_(select(dependencies.c.job_uid).where(dependencies.c.on_uid == uid))
    left = jobs.c.num_unmet - 1 if state is State.SUCCEEDED else DOOMED
    write.connection.execute(update(jobs).where(waiting, jobs.c.num_unmet > 0).values(num_unmet=left))
    gone = (dependencies.c.on_uid == uid) | (dependencies.c.job_uid == uid)
    write.connection.execute(delete(dependencies).where(gone))
