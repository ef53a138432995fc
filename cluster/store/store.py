"""The store: one method per thing that the control plane wants to know or to make durable, one transaction each.

Synchronous; handlers call it in a thread. Returns frozen records, raises `ClusterError`s. Decides nothing about jobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from sqlalchemy import Connection, insert, select

from cluster.errors import AlreadyExists, OutOfRange, PreconditionFailed
from cluster.lifecycle import State
from cluster.scheduler import Quota
from cluster.store import audit_rows, deployment_rows, job_rows, model_rows, queue_rows, token_rows
from cluster.store.audit_rows import Call, StoredEntry
from cluster.store.database import Database, Write, open_database
from cluster.store.job_counts import JobCount, job_counts
from cluster.store.records import (
    Change,
    DeploymentState,
    JobQuery,
    Lease,
    NewJob,
    StoredDeployment,
    StoredEvent,
    StoredJob,
    StoredModel,
)
from cluster.store.tables import idempotency
from cluster.store.token_rows import StoredToken

_CREATE_JOB = "CreateJob"


class Store:
    """Everything durable."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, url: str, clock: Callable[[], float] = time.time) -> Self:
        """Connect, and bring the tables to their newest form."""
        return cls(open_database(url, clock))

    def close(self) -> None:
        self.database.close()

    def now_us(self) -> int:
        return self.database.now_us()

    # Jobs

    def create_job(self, new: NewJob, request_id: str = "", request_sha256: str = "") -> StoredJob:
        """Store a job, or answer with the one that the same request stored before."""
        with self.database.write() as write:
            known = _replayed(write.connection, request_id, request_sha256)
            if known:
                return job_rows.get_job(write.connection, known)
            job = job_rows.insert_job(write, new)
            _remember(write, request_id, request_sha256, job.uid)
            return job

    def find_request(self, request_id: str, request_sha256: str) -> StoredJob | None:
        """The job that this very request stored before; AlreadyExists when the id was used for another one."""
        with self.database.read() as connection:
            known = _replayed(connection, request_id, request_sha256)
            return job_rows.get_job(connection, known) if known else None

    def job_counts(self) -> list[JobCount]:
        with self.database.read() as connection:
            return job_counts(connection)

    def get_job(self, uid: str) -> StoredJob:
        with self.database.read() as connection:
            return job_rows.get_job(connection, uid)

    def list_jobs(self, query: JobQuery) -> list[StoredJob]:
        with self.database.read() as connection:
            return job_rows.list_jobs(connection, query)

    def jobs_in(self, states: Iterable[State]) -> list[StoredJob]:
        with self.database.read() as connection:
            return job_rows.jobs_in(connection, states)

    def queue_heads(self, most: int) -> list[StoredJob]:
        """The first `most` jobs of each project's queue that are not held."""
        with self.database.read() as connection:
            return queue_rows.heads(connection, self.now_us(), most)

    def num_waiting(self) -> int:
        with self.database.read() as connection:
            return queue_rows.num_waiting(connection)

    def states_of(self, uids: Sequence[str]) -> dict[str, State]:
        with self.database.read() as connection:
            return queue_rows.states_of(connection, list(uids))

    def quotas(self) -> dict[str, Quota]:
        with self.database.read() as connection:
            return queue_rows.quotas(connection)

    def set_quota(self, name: str, limits: Mapping[str, float | None], weight: float) -> None:
        with self.database.write() as write:
            queue_rows.set_quota(write, name, limits, weight)

    def save_standings(self, waiting: Mapping[str, tuple[int, str]]) -> None:
        with self.database.write() as write:
            queue_rows.save_standings(write, waiting)

    def standings(self) -> tuple[int, dict[str, tuple[int, str]]]:
        """When the scheduler last decided, and uid -> (position, reason) in order."""
        with self.database.read() as connection:
            return queue_rows.load_standings(connection)

    def unreleased(self) -> list[StoredJob]:
        with self.database.read() as connection:
            return job_rows.unreleased(connection)

    def preempted(self) -> list[StoredJob]:
        with self.database.read() as connection:
            return job_rows.preempted(connection)

    def transition(self, job: StoredJob, change: Change, lease: Lease | None = None) -> StoredJob:
        """Make one step from what was read; Conflict / JOB_CHANGED if it moved on. With a lease: its holder only."""
        with self.database.write() as write:
            if lease is not None:
                _holder(write, lease)
            return job_rows.apply(write, job, change)

    def mark_attempt(self, job: StoredJob, **values: object) -> None:
        """Note something about the last attempt that is no step of its job; Conflict / JOB_CHANGED as for a step."""
        with self.database.write() as write:
            job_rows.mark_attempt(write.connection, job, values)

    # Workers

    def renew_lease(self, lease: Lease, lease_s: float) -> StoredJob:
        """Note that the attempt's driver lives; PreconditionFailed / LEASE_LOST for anybody else."""
        with self.database.write() as write:
            job = _holder(write, lease)
            _renew(write, job, lease_s)
            return job

    def record_progress(
        self, lease: Lease, lease_s: float, progress: Mapping[str, Any] | None, lines: Sequence[tuple[str, str]]
    ) -> StoredJob:
        """Store how far the attempt is, add (reason, message) lines to the history, renew the lease."""
        with self.database.write() as write:
            job = _holder(write, lease)
            _renew(write, job, lease_s)
            for reason, message in lines:
                job = job_rows.apply(write, job, Change(reason, message))
            if progress is not None:
                job_rows.touch_progress(write, job.uid, progress)
            return job

    # Watching

    def head_version(self) -> int:
        with self.database.read() as connection:
            return job_rows.head_version(connection)

    def check_cursor(self, after: int) -> None:
        """OutOfRange for a resource version that this store never gave."""
        if not 0 <= after <= self.head_version():
            raise OutOfRange("RESOURCE_VERSION_UNKNOWN", f"this store has no resource version {after}; begin with 0")

    def snapshot_page(self, after: int, uid: str, limit: int) -> list[StoredJob]:
        with self.database.read() as connection:
            return job_rows.snapshot_page(connection, after, uid, limit)

    def changes(self, after: int, uid: str, limit: int) -> list[tuple[StoredJob, StoredEvent | None]]:
        with self.database.read() as connection:
            return job_rows.changes(connection, after, uid, limit)

    def job_events(self, uid: str) -> list[StoredEvent]:
        with self.database.read() as connection:
            return job_rows.job_events(connection, uid)

    # Models

    def model_version(self, name: str, version: int) -> StoredModel:
        with self.database.read() as connection:
            return model_rows.get_version(connection, name, version)

    def model_alias(self, name: str, alias: str) -> StoredModel:
        with self.database.read() as connection:
            return model_rows.get_alias(connection, name, alias)

    def model_newest(self, name: str) -> StoredModel:
        with self.database.read() as connection:
            return model_rows.get_newest(connection, name)

    def list_models(self, name: str, after: tuple[str, int] | None, limit: int) -> list[StoredModel]:
        with self.database.read() as connection:
            return model_rows.list_versions(connection, name, after, limit)

    def set_alias(self, name: str, alias: str, version: int, expected: int | None) -> StoredModel:
        with self.database.write() as write:
            return model_rows.move_alias(write, name, alias, version, cause="SET_ALIAS", expected=expected)

    def alias_history(self, name: str, alias: str) -> Sequence[tuple[int, int, str]]:
        with self.database.read() as connection:
            return model_rows.list_alias_history(connection, name, alias)

    # Deployments

    def create_deployment(self, new: StoredDeployment) -> StoredDeployment:
        with self.database.write() as write:
            write.changed = True
            return deployment_rows.create(write, new)

    def get_deployment(self, name: str) -> StoredDeployment:
        with self.database.read() as connection:
            return deployment_rows.get(connection, name)

    def list_deployments(self) -> list[StoredDeployment]:
        with self.database.read() as connection:
            return deployment_rows.list_all(connection)

    def note_deployment(self, name: str, state: DeploymentState, message: str, endpoint: str) -> None:
        with self.database.write() as write:
            write.changed = True
            deployment_rows.note(write, name, state=state.value, message=message, endpoint=endpoint)

    def delete_deployment(self, name: str) -> None:
        """Mark it as going; the reconciler takes it down and forgets it."""
        with self.database.write() as write:
            write.changed = True
            deployment_rows.get(write.connection, name)
            deployment_rows.note(write, name, state=DeploymentState.DELETING.value, message="being taken down")

    def forget_deployment(self, name: str) -> None:
        with self.database.write() as write:
            deployment_rows.forget(write, name)

    # Tokens

    def find_token(self, token_id: str) -> StoredToken | None:
        with self.database.read() as connection:
            return token_rows.find(connection, token_id)

    def list_tokens(self) -> list[StoredToken]:
        with self.database.read() as connection:
            return token_rows.list_all(connection)

    def has_admin_token(self) -> bool:
        with self.database.read() as connection:
            return token_rows.has_admin(connection, self.now_us())

    def create_token(self, new: StoredToken) -> StoredToken:
        with self.database.write() as write:
            return token_rows.create(write, new)

    def create_first_token(self, new: StoredToken) -> bool:
        """Whether it was stored: only where no admin token is in use."""
        with self.database.write() as write:
            if token_rows.has_admin(write.connection, write.now_us):
                return False
            token_rows.insert_row(write, new)
            return True

    def revoke_token(self, token_id: str) -> StoredToken:
        with self.database.write() as write:
            return token_rows.revoke(write, token_id)

    def note_token_use(self, token_id: str, time_us: int) -> None:
        with self.database.write() as write:
            token_rows.note_use(write, token_id, time_us)

    # Audit

    def append_audit(self, calls: Sequence[Call]) -> list[StoredEntry]:
        with self.database.write() as write:
            return audit_rows.append(write, calls)

    def audit_page(self, before: int | None, actor: str, limit: int) -> list[StoredEntry]:
        with self.database.read() as connection:
            return audit_rows.page(connection, before, actor, limit)

    def audit_in_order(self) -> Iterator[StoredEntry]:
        """All entries, oldest first, as of one moment."""
        with self.database.read() as connection:
            yield from audit_rows.in_order(connection)


def _replayed(connection: Connection, request_id: str, request_sha256: str) -> str:
    if not request_id:
        return ""
    at = (idempotency.c.method == _CREATE_JOB, idempotency.c.request_id == request_id)
    row = connection.execute(select(idempotency).where(*at)).one_or_none()
    if row is None:
        return ""
    if row.request_sha256 != request_sha256:
        raise AlreadyExists("REQUEST_ID_REUSED", f"request id {request_id!r} was used for another job; take a new one")
    return str(row.response.decode())


def _remember(write: Write, request_id: str, request_sha256: str, uid: str) -> None:
    if request_id:
        row = {"method": _CREATE_JOB, "request_id": request_id, "request_sha256": request_sha256}
        write.connection.execute(insert(idempotency).values(**row, response=uid.encode(), create_time_us=write.now_us))


def _holder(write: Write, lease: Lease) -> StoredJob:
    """The job, if `lease` is the open, current attempt's. The answer never says which part was wrong."""
    job = job_rows.get_job(write.connection, lease.job_uid)
    attempt = job.last_attempt
    if (
        attempt is None
        or not attempt.is_open
        or attempt.number != lease.attempt
        or not attempt.lease_token_sha256
        or attempt.lease_token_sha256 != lease.token_sha256
    ):
        raise PreconditionFailed("LEASE_LOST", f"this attempt of {lease.job_uid} does not hold the lease; end at once")
    return job


def _renew(write: Write, job: StoredJob, lease_s: float) -> None:
    if job.last_attempt is not None:
        expires_us = write.now_us + int(lease_s * 1e6)
        job_rows.update_attempt(write.connection, job.last_attempt, {"lease_expires_us": expires_us})
