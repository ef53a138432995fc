"""Jobs as the caller of an RPC may see them: those of other projects are not there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from athanor.v1 import job_pb2

from cluster.security.caller import Caller, caller
from cluster.store.records import StoredJob
from cluster.store.store import Store
from cluster.wire import job_to_proto

_STALE_S = 1.0


def visible_job(store: Store, uid: str) -> StoredJob:
    """One job; NotFound / JOB_NOT_FOUND, whether it is not there or somebody else's."""
    return job_for(store, caller(), uid)


def job_for(store: Store, who: Caller, uid: str) -> StoredJob:
    """As `visible_job`, for a caller who was asked for before."""
    job = store.get_job(uid)
    who.check_sees_job(job.uid, job.project)
    return job


class Look:
    """One job again and again, read when anything has changed since, and now and then for what others write."""

    def __init__(self, store: Store, who: Caller, uid: str) -> None:
        self._store, self._who, self._uid = store, who, uid
        self._job: StoredJob | None = None
        self._ticket: asyncio.Event | None = None
        self._read_at = 0.0

    async def job(self, ticket: asyncio.Event) -> StoredJob:
        """As it is, or as it was a second ago where the bell has not rung since: `ticket` is the present one."""
        now = time.monotonic()
        if self._job is None or self._ticket is not ticket or now - self._read_at >= _STALE_S:
            self._job = await asyncio.to_thread(job_for, self._store, self._who, self._uid)
            self._ticket, self._read_at = ticket, now
        return self._job


def shown(store: Store, job: StoredJob) -> job_pb2.Job:
    """With its place in the queue, while it waits there."""
    return shown_all(store, [job])[0]


def shown_all(store: Store, jobs: Sequence[StoredJob]) -> list[job_pb2.Job]:
    standings = store.standings_of(jobs)
    return [job_to_proto(job, standings.get(job.uid)) for job in jobs]
