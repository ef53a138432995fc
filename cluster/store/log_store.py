"""The part of the store that knows what happened: changes in order for those who watch, and what is forgotten of them.

Synchronous, as the whole store.
"""

from __future__ import annotations

from cluster.store import job_rows, log_rows
from cluster.store.database import Database
from cluster.store.log_rows import Deletion, StoredChange
from cluster.store.records import StoredEvent, StoredJob


class LogStore:
    """The log of all jobs."""

    database: Database

    def head_version(self) -> int:
        with self.database.read() as connection:
            return log_rows.head_version(connection)

    def check_cursor(self, after: int) -> None:
        """OutOfRange for a resource version that this store never gave, or has compacted away."""
        with self.database.read() as connection:
            log_rows.check_cursor(connection, after)

    def snapshot_page(self, after: int, uid: str, limit: int) -> list[StoredJob]:
        with self.database.read() as connection:
            return log_rows.snapshot_page(connection, after, uid, limit)

    def changes(self, after: int, uid: str, limit: int) -> list[StoredChange]:
        with self.database.read() as connection:
            return log_rows.changes(connection, after, uid, limit)

    def job_events(self, uid: str, after: int = 0, limit: int | None = None) -> list[StoredEvent]:
        with self.database.read() as connection:
            return log_rows.job_events(connection, uid, after, limit)

    def delete_job(self, job: StoredJob) -> None:
        """Forget a job, if it is still what the caller read; Conflict / JOB_CHANGED otherwise."""
        with self.database.write() as write:
            job_rows.check_unchanged(write.connection, job)
            log_rows.delete_job(write, job)

    def find_deletion(self, uid: str) -> Deletion | None:
        with self.database.read() as connection:
            return log_rows.find_deletion(connection, uid)

    def deletions_after(self, after: int, limit: int) -> list[Deletion]:
        with self.database.read() as connection:
            return log_rows.deletions_after(connection, after, limit)

    def compact(self, keep: int, most: int) -> bool:
        """Forget the log further back than `keep` versions, at most `most` at a time; whether more is left to do."""
        with self.database.write() as write:
            return log_rows.compact(write, keep, most)

    def forget_requests(self, older_than_s: float) -> None:
        with self.database.write() as write:
            log_rows.forget_requests(write, write.now_us - int(older_than_s * 1e6))
