"""Jobs as the caller of an RPC may see them: those of other projects are not there."""

from __future__ import annotations

from collections.abc import Sequence

from athanor.v1 import job_pb2

from cluster.security.caller import Caller, caller
from cluster.store.records import StoredJob
from cluster.store.store import Store
from cluster.wire import job_to_proto


def visible_job(store: Store, uid: str) -> StoredJob:
    """One job; NotFound / JOB_NOT_FOUND, whether it is not there or somebody else's."""
    return job_for(store, caller(), uid)


def job_for(store: Store, who: Caller, uid: str) -> StoredJob:
    """As `visible_job`, for a caller who was asked for before."""
    job = store.get_job(uid)
    who.check_sees_job(job.uid, job.project)
    return job


def shown(store: Store, job: StoredJob) -> job_pb2.Job:
    """With its place in the queue, while it waits there."""
    return shown_all(store, [job])[0]


def shown_all(store: Store, jobs: Sequence[StoredJob]) -> list[job_pb2.Job]:
    standings = store.standings_of(jobs)
    return [job_to_proto(job, standings.get(job.uid)) for job in jobs]
