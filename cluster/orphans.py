"""Finds what is this installation's and wanted by nothing any more, and after a grace ends or removes it.

Ray jobs are told by the installation's id in their metadata, Serve applications by their models, files by a mark on the
storage. Placement groups and actors go with their Ray job: Ray sees to it. What files are orphans: orphan_files.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from cluster.deployment_reconciler import Serving
from cluster.errors import ClusterError, Conflict
from cluster.launcher import INSTALLATION, Launcher
from cluster.orphan_files import OrphanFiles, remove_tree
from cluster.policy import View
from cluster.ray_state import ListedJob
from cluster.serve_plan import Plan
from cluster.settings import Settings
from cluster.store.store import Store
from cluster.wakeup import WakeUp

log = structlog.get_logger(__name__)

_INTERVAL_S = 60.0


@dataclass(frozen=True)
class Thing:
    """Something that nothing wants: of which kind, and its name."""

    kind: str
    name: str


class Patience:
    """How long each thing has been an orphan without a break. In memory: a restart begins anew, and reaps later."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_seen_s: dict[Thing, float] = {}

    def overdue(self, kind: str, names: Iterable[str], grace_s: float) -> list[str]:
        """Those of all orphans of a kind that have been there for the whole grace."""
        now_s, seen = self._clock(), {Thing(kind, name) for name in names}
        kept = {thing: at for thing, at in self._first_seen_s.items() if thing.kind != kind or thing in seen}
        self._first_seen_s = dict.fromkeys(seen, now_s) | kept
        return sorted(thing.name for thing in seen if now_s - self._first_seen_s[thing] >= grace_s)


def orphaned_jobs(listed: Iterable[ListedJob], installation: str) -> list[str]:
    """Ray jobs of ours that live; which of them the store still wants is asked afterwards, as they came later there."""
    return [
        job.ray_job_id for job in listed if job.view is View.ALIVE and job.metadata.get(INSTALLATION) == installation
    ]


class Orphans:
    """Of one store. One control plane at a time calls `round`, every so often."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        launcher: Launcher,
        serving: Serving,
        clock: Callable[[], float] = time.monotonic,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """`leads` tells whether this control plane is the one of several that acts."""
        self._settings = settings
        self._store = store
        self._launcher = launcher
        self._serving = serving
        self._patience = Patience(clock)
        self._files = OrphanFiles(settings, store)
        self._leads = leads

    async def run(self, wake_up: WakeUp) -> None:
        await wake_up.rounds(self.round, _INTERVAL_S, hears_bell=False)

    async def round(self) -> None:
        """Look once. What cannot be seen now is no orphan, and what cannot be ended now is tried again."""
        if not self._leads():
            return
        for look in (self._end_jobs, self._end_applications, self._remove_files):
            try:
                await look()
            except (ClusterError, OSError) as error:
                log.warning("orphans.not_seen", what=look.__name__, error=str(error))
            except Exception as error:  # as at the process boundary: recorded, and tried again
                log.error("orphans.crashed", exc_info=error)

    async def _end_jobs(self) -> None:
        installation = await asyncio.to_thread(self._store.installation_id)
        ours = orphaned_jobs(await self._launcher.jobs(), installation)
        wanted = await asyncio.to_thread(self._store.unreleased_of, ours)
        orphans = [ray_job_id for ray_job_id in ours if ray_job_id not in wanted]
        for ray_job_id in self._patience.overdue("ray job", orphans, self._settings.orphan_grace_s):
            await self._launcher.stop(ray_job_id)
            log.warning("orphan.ended", kind="ray job", name=ray_job_id)

    async def _end_applications(self) -> None:
        """While anything is deployed, the loop that tends it takes away what is not; this is for when nothing is."""
        names = await self._serving.ours()
        stored = await asyncio.to_thread(self._store.list_deployments)
        overdue = self._patience.overdue("application", () if stored else names, self._settings.orphan_grace_s)
        if overdue:
            await self._serving.apply(Plan(), self._check_nothing_deployed)
            log.warning("orphan.ended", kind="application", name=", ".join(overdue))

    async def _check_nothing_deployed(self) -> None:
        stored = await asyncio.to_thread(self._store.list_deployments)
        if stored or not self._leads():
            raise Conflict("DEPLOYMENT_CHANGED", "something was deployed meanwhile, or another control plane acts")

    async def _remove_files(self) -> None:
        found = await asyncio.to_thread(self._files.find)
        for name in self._patience.overdue("directory", map(str, found), self._settings.orphan_grace_s):
            await asyncio.to_thread(remove_tree, Path(name))
            log.warning("orphan.removed", kind="directory", name=name)
