"""The loop that keeps what is served equal to what is stored, apart from the jobs' loop: Serve may take its time.

Level-triggered like that one, and as quiet where there is nothing to serve.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import structlog

from cluster.deployer import DeploymentStatus
from cluster.errors import ClusterError, NotFound, RayError
from cluster.registry import resolve
from cluster.settings import Settings
from cluster.store.records import DeploymentState, StoredDeployment
from cluster.store.store import Store
from cluster.wakeup import WakeUp

log = structlog.get_logger(__name__)


class Serving(Protocol):
    """What the control plane needs of Ray Serve."""

    async def ours(self) -> Collection[str]:
        """Names of the applications that this installation has deployed."""

    async def apply(
        self, deployments: Sequence[StoredDeployment], manifests: Mapping[str, str]
    ) -> Mapping[str, DeploymentStatus]:
        """Make Serve equal to these and say where each is; one that is to go and is gone has no entry.

        `manifests`: model version -> sha256 of its manifest; replicas serve nothing else under that name.
        """


class DeploymentReconciler:
    """Acts for all deployments of one store."""

    def __init__(
        self, settings: Settings, store: Store, serving: Serving, leads: Callable[[], bool] = lambda: True
    ) -> None:
        """`leads` tells whether this control plane is the one of several that acts."""
        self._leads = leads
        self._settings = settings
        self._store = store
        self._serving = serving

    async def run(self, wake_up: WakeUp) -> None:
        await wake_up.rounds(self.round, self._settings.reconcile_interval_s)

    async def round(self) -> None:
        """Bring Serve to the stored deployments, and note how far each is. Asks nothing of Ray while there are none."""
        if not self._leads():
            return
        try:
            stored = await asyncio.to_thread(self._store.list_deployments)
            if not stored:
                return
            seen = await self._seen(stored)
            for deployment in stored:
                await asyncio.to_thread(self._note, deployment, seen.get(deployment.name))
        except (ClusterError, OSError) as error:
            log.warning("deployments.not_tended", error=str(error))
        except Exception as error:  # as at the process boundary: recorded, and tried again
            log.error("deployments.crashed", exc_info=error)

    async def _seen(self, stored: Sequence[StoredDeployment]) -> Mapping[str, DeploymentStatus]:
        """Where Serve keeps quiet or says no, its users are told by each deployment."""
        try:
            return await self._serving.apply(stored, await asyncio.to_thread(self._manifests, stored))
        except RayError as error:
            log.warning("serve.not_seen", error=str(error))
            return {each.name: _unseen(each, error.message) for each in stored}

    def _manifests(self, stored: Sequence[StoredDeployment]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in {each.resolved_model for each in stored}:
            with contextlib.suppress(NotFound):
                found[name] = resolve(self._store, name).manifest_sha256
        return {name: sha256 for name, sha256 in found.items() if sha256}

    def _note(self, deployment: StoredDeployment, status: DeploymentStatus | None) -> None:
        if deployment.state is DeploymentState.DELETING:
            if status is None:
                self._store.forget_deployment(deployment.name)
            return
        if status is None:
            return
        seen = (status.state, status.message, status.endpoint)
        if seen != (deployment.state, deployment.message, deployment.endpoint):
            self._store.note_deployment(deployment.name, *seen)
            log.info("deployment.seen", deployment=deployment.name, state=status.state, message=status.message)


def _unseen(deployment: StoredDeployment, words: str) -> DeploymentStatus:
    """A deployment whose Serve cannot be asked: what was ready may not be; why one failed stays known."""
    if deployment.state is DeploymentState.FAILED:
        return DeploymentStatus(DeploymentState.FAILED, deployment.message, deployment.endpoint)
    is_new = deployment.state is DeploymentState.PENDING
    state = DeploymentState.PENDING if is_new else DeploymentState.DEPLOYING
    return DeploymentStatus(state, words, deployment.endpoint)
