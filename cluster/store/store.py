"""The store: one method per thing that the control plane wants to know or to make durable, one transaction each.

Synchronous; handlers call it in a thread. Returns frozen records, raises `ClusterError`s. Decides nothing about jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from cluster.errors import NotFound, PreconditionFailed, StoreUnavailable
from cluster.lifecycle import State
from cluster.scheduler import Quota, Rules
from cluster.standings import Standing, standing_of
from cluster.store import (
    creation_rows,
    job_lists,
    job_rows,
    queue_rows,
    replica_rows,
    request_rows,
)
from cluster.store.creation_rows import CREATE_JOB, Created, Creation
from cluster.store.database import Database, Write, open_database
from cluster.store.deployment_store import DeploymentStore
from cluster.store.installation_store import InstallationStore
from cluster.store.job_counts import JobCount, job_counts
from cluster.store.log_store import LogStore
from cluster.store.model_store import ModelStore
from cluster.store.records import (
    Change,
    JobQuery,
    Lease,
    NewJob,
    QueueEntry,
    StoredJob,
)
from cluster.store.security_store import SecurityStore

LEADER = "leader"
"""The lease of the replica that does what only one may do."""


class Store(ModelStore, DeploymentStore, InstallationStore, LogStore, SecurityStore):
    """Everything durable."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, url: str, clock: Callable[[], float] | None = None, rules: Rules | None = None) -> Self:
        """Connect, bring the tables to their newest form, and the queue into the order of these rules."""
        store = cls(open_database(url, clock, rules or Rules()))
        with store.database.write() as write:
            queue_rows.put_in_order(write)
        return store

    def close(self) -> None:
        self.database.close()

    def now_us(self) -> int:
        """For how long something has lasted: steady, whoever sets the clock."""
        return self.database.now_us()

    def wall_us(self) -> int:
        """For what shall be at a moment that people name."""
        return self.database.wall_us()

    # Jobs

    def create_job(
        self, new: NewJob, request_id: str = "", request_sha256: str = "", method: str = CREATE_JOB
    ) -> StoredJob:
        """Store a job, or answer with the one that the same request stored before."""
        created = self.create_jobs([Creation(new, request_id, request_sha256, method)])[0]
        if isinstance(created, Exception):
            raise created
        return created.job

    def create_jobs(self, asked: Sequence[Creation]) -> Sequence[Created | Exception]:
        """As `create_job`, all of them in one transaction; one that cannot be stored fails alone."""
        try:
            with self.database.write() as write:
                return creation_rows.create(write, asked)
        except StoreUnavailable:
            raise
        except (SQLAlchemyError, ValueError) as error:  # the database refused what one of them holds, and with it all
            if len(asked) == 1:
                return [error]
            return [created for one in asked for created in self.create_jobs([one])]

    def find_request(
        self, request_id: str, request_sha256: str, project: str = "default", method: str = CREATE_JOB
    ) -> StoredJob | None:
        """The job that this very request stored before; AlreadyExists when the id was used for another one."""
        with self.database.read() as connection:
            known = request_rows.find(connection, f"{method}/{project}", request_id, request_sha256)
            return job_rows.get_job(connection, known) if known else None

    def job_counts(self) -> list[JobCount]:
        with self.database.read() as connection:
            return job_counts(connection)

    def get_job(self, uid: str) -> StoredJob:
        with self.database.read() as connection:
            return job_rows.get_job(connection, uid)

    def list_jobs(self, query: JobQuery) -> list[StoredJob]:
        with self.database.read() as connection:
            return job_lists.list_jobs(connection, query)

    def jobs_in(self, states: Iterable[State]) -> list[StoredJob]:
        with self.database.read() as connection:
            return job_rows.jobs_in(connection, states)

    # The queue

    def queue_version(self) -> tuple[object, ...]:
        """Another one after everything that the scheduler's decision depends on and that is stored as a step."""
        with self.database.read() as connection:
            return queue_rows.version(connection)

    def queue_heads(self, most: int, behind: Mapping[str, QueueEntry] | None = None) -> list[QueueEntry]:
        """The first `most` jobs of each project's queue that may begin now; those `behind` some, of their projects."""
        with self.database.read() as connection:
            return queue_rows.heads(connection, self.wall_us(), most, behind)

    def doomed(self, most: int) -> list[StoredJob]:
        """Waiting jobs that depend on one that did not succeed."""
        with self.database.read() as connection:
            return queue_rows.doomed(connection, most)

    def next_hold(self) -> int | None:
        """When the next held job is held no more, by `wall_us`."""
        with self.database.read() as connection:
            return queue_rows.next_hold(connection, self.wall_us())

    def specs_of(self, uids: Sequence[str]) -> list[tuple[str, str, Mapping[str, Any]]]:
        """(uid, kind, spec) of the jobs that are there."""
        with self.database.read() as connection:
            return queue_rows.specs_of(connection, uids)

    def num_waiting(self) -> int:
        with self.database.read() as connection:
            return queue_rows.num_waiting(connection)

    def states_of(self, uids: Sequence[str]) -> dict[str, State]:
        with self.database.read() as connection:
            return queue_rows.states_of(connection, uids)

    def quotas(self) -> dict[str, Quota]:
        with self.database.read() as connection:
            return queue_rows.quotas(connection)

    def set_quota(self, name: str, limits: Mapping[str, float | None], weight: float) -> None:
        with self.database.write() as write:
            queue_rows.set_quota(write, name, limits, weight)

    def save_standings(self, waiting: Mapping[str, Standing]) -> None:
        with self.database.write() as write:
            queue_rows.save_standings(write, waiting)

    def standings(self) -> tuple[int, dict[str, Standing]]:
        """When the scheduler last decided (0: never), and uid -> standing in the order of the queue."""
        with self.database.read() as connection:
            return queue_rows.load_standings(connection)

    def standings_of(self, found: Sequence[StoredJob]) -> dict[str, Standing]:
        """Of those of these jobs that wait."""
        if all(job.state is not State.QUEUED for job in found):
            return {}
        (decided_us, known), now_us = self.standings(), self.wall_us()
        each = {job.uid: standing_of(job, decided_us, known, now_us) for job in found}
        return {uid: standing for uid, standing in each.items() if standing is not None}

    # What the reconciler tends

    def to_tend(self) -> list[StoredJob]:
        """Jobs that hold something on the cluster or may do so still, and those that come back by themselves."""
        with self.database.read() as connection:
            return job_rows.to_tend(connection)

    def unreleased(self) -> list[StoredJob]:
        with self.database.read() as connection:
            return job_rows.unreleased(connection)

    def transition(self, job: StoredJob, change: Change, lease: Lease | None = None) -> StoredJob:
        """Make one step from what was read; Conflict / JOB_CHANGED if it moved on. With a lease: its holder only."""
        with self.database.write() as write:
            if lease is not None:
                _holder(write.connection, lease)
            return job_rows.apply(write, job, change)

    def mark_attempt(self, job: StoredJob, **values: object) -> None:
        """Note something about the last attempt that is no step of its job; Conflict / JOB_CHANGED as for a step."""
        with self.database.write() as write:
            job_rows.mark_attempt(write.connection, job, values)

    # Workers

    def leased(self, lease: Lease) -> StoredJob:
        """The lease's job, for its holder. Anybody may ask, and nobody who writes waits for it."""
        with self.database.read() as connection:
            return _holder(connection, lease)

    def renew_lease(self, lease: Lease, lease_s: float) -> StoredJob:
        """Note that the attempt's driver lives; PreconditionFailed / LEASE_LOST for anybody else."""
        self.leased(lease)
        with self.database.write() as write:
            job = _holder(write.connection, lease)
            _renew(write, job, lease_s)
            return job

    def record_progress(
        self, lease: Lease, lease_s: float, progress: Mapping[str, Any] | None, lines: Sequence[tuple[str, str]]
    ) -> StoredJob:
        """Store how far the attempt is, add (reason, message) lines to the history, renew the lease."""
        self.leased(lease)
        with self.database.write() as write:
            job = _holder(write.connection, lease)
            _renew(write, job, lease_s)
            for reason, message in lines:
                job = job_rows.apply(write, job, Change(reason, message))
            if progress is not None:
                job_rows.touch_progress(write, job.uid, progress)
            return job

    # Several control planes

    def beat(self, replica_id: str, address: str, lease_s: float) -> tuple[dict[str, str], bool]:
        """Note that this replica lives: id -> address of all that do, and whether it leads."""
        with self.database.write() as write:
            living = replica_rows.beat(write, replica_id, address, lease_s)
            return living, replica_rows.take(write, LEADER, replica_id, lease_s)

    def leave(self, replica_id: str) -> None:
        with self.database.write() as write:
            replica_rows.leave(write, replica_id)


def _holder(connection: Connection, lease: Lease) -> StoredJob:
    """The job, if `lease` is the open, current attempt's. The answer never says which part was wrong."""
    try:
        job = job_rows.get_job(connection, lease.job_uid)
    except NotFound:
        raise lease_lost(lease) from None
    attempt = job.last_attempt
    if (
        attempt is None
        or not attempt.is_open
        or attempt.number != lease.attempt
        or not attempt.lease_token_sha256
        or attempt.lease_token_sha256 != lease.token_sha256
    ):
        raise lease_lost(lease)
    return job


def lease_lost(lease: Lease) -> PreconditionFailed:
    """One answer, whatever of it is wrong."""
    return PreconditionFailed(
        "LEASE_LOST", f"this attempt of {lease.job_uid[:80]} does not hold the lease; end at once"
    )


def _renew(write: Write, job: StoredJob, lease_s: float) -> None:
    if job.last_attempt is not None:
        expires_us = write.now_us + int(lease_s * 1e6)
        job_rows.update_attempt(write.connection, job.last_attempt, {"lease_expires_us": expires_us})
