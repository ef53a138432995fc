"""The part of the store that knows deployments: one transaction for each thing that is asked or made durable.

Synchronous, as the whole store. What a deployment shall become is decided in rollout.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster.store import deployment_rows, model_rows, request_rows
from cluster.store.database import Database
from cluster.store.deployment_records import (
    Decision,
    DeploymentState,
    Json,
    StoredDecision,
    StoredDeployment,
    Trial,
)

_CREATE = "CreateDeployment"


class DeploymentStore:
    """What shall be served."""

    database: Database

    def create_deployment(
        self, new: StoredDeployment, request_id: str = "", request_sha256: str = ""
    ) -> StoredDeployment:
        """Store a deployment, or answer with the one that the same request stored before."""
        scope = f"{_CREATE}/{new.project}"
        with self.database.write() as write:
            known = request_rows.find(write.connection, scope, request_id, request_sha256)
            if known:
                return deployment_rows.get(write.connection, known)
            write.changed = True
            model_rows.check_there(write.connection, [new.resolved_model])
            made = deployment_rows.create(write, new, new.creator)
            request_rows.remember(write, [(scope, request_id, request_sha256, made.name)])
            return made

    def get_deployment(self, name: str) -> StoredDeployment:
        with self.database.read() as connection:
            return deployment_rows.get(connection, name)

    def list_deployments(self) -> list[StoredDeployment]:
        with self.database.read() as connection:
            return deployment_rows.list_all(connection)

    def decide_deployment(
        self, known: StoredDeployment, wanted: StoredDeployment, decisions: Sequence[Decision]
    ) -> StoredDeployment:
        """Make one step from what was read; Conflict / DEPLOYMENT_CHANGED if it moved on."""
        numbers = {each.number for each in known.revisions}
        with self.database.write() as write:
            write.changed = True
            added = [each.model for each in wanted.revisions if each.number not in numbers]
            model_rows.check_there(write.connection, added)
            return deployment_rows.decide(write, known, wanted, decisions)

    def note_deployment(
        self, name: str, state: DeploymentState, message: str, endpoint: str, observed_generation: int
    ) -> None:
        """Store what was seen of a deployment."""
        seen = {"message": message, "endpoint": endpoint, "observed_generation": observed_generation}
        with self.database.write() as write:
            write.changed = True
            deployment_rows.note(write, name, state=state.value, **seen)

    def observe_canary(self, name: str, revision: int, token: str, see: Callable[[Trial], Json]) -> None:
        """Let `see` count what a judge has observed; PreconditionFailed / LEASE_LOST when its canary is over."""
        with self.database.write() as write:
            write.changed = True
            deployment_rows.observe(write, name, revision, token, see)

    def deployment_decisions(self, name: str, before: int | None, limit: int) -> list[StoredDecision]:
        with self.database.read() as connection:
            deployment_rows.get(connection, name)
            return deployment_rows.decisions_of(connection, name, before, limit)

    def delete_deployment(self, name: str) -> None:
        """Mark it as going; the reconciler takes it down and forgets it."""
        with self.database.write() as write:
            write.changed = True
            deployment_rows.get(write.connection, name)
            deployment_rows.note(write, name, state=DeploymentState.DELETING.value, message="being taken down")

    def forget_deployment(self, name: str) -> None:
        with self.database.write() as write:
            deployment_rows.forget(write, name)
