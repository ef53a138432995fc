"""The part of the store that knows the installation as a whole: who it is, what of it is wanted, who waits where.

Synchronous, as the whole store.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.lifecycle import State
from cluster.store import installation_rows, queue_view
from cluster.store.database import Database


class InstallationStore:
    """What is not about one job or one model."""

    database: Database

    def installation_id(self) -> str:
        """Who this store belongs to: made at the first time it is wanted, and kept for ever."""
        with self.database.read() as connection:
            known = installation_rows.find(connection)
        if known:
            return known
        with self.database.write() as write:
            return installation_rows.create(write)

    def unreleased_of(self, ray_job_ids: Sequence[str]) -> set[str]:
        with self.database.read() as connection:
            return installation_rows.unreleased_of(connection, ray_job_ids)

    def known_jobs(self, uids: Sequence[str]) -> dict[str, State]:
        with self.database.read() as connection:
            return installation_rows.states_of(connection, uids)

    def queue_line(self, scope: Sequence[str] | None, limit: int) -> queue_view.Line:
        with self.database.read() as connection:
            return queue_view.line(connection, self.database.now_us(), scope, limit)

    def project_names(self) -> list[str]:
        with self.database.read() as connection:
            return queue_view.project_names(connection)

    def num_waiting_of(self) -> dict[str, int]:
        """Project -> jobs that wait."""
        with self.database.read() as connection:
            return queue_view.num_waiting_of(connection)
