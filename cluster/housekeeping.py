"""What is cleared away now and then: changes further back than is kept, old request ids, directories without a job.

Level-triggered: it may be killed anywhere, and several control planes may do it at once. It removes only what a deleted
job or a copy that was never used left behind, never a directory that it merely does not know.
"""

from __future__ import annotations

import asyncio
import shutil

import structlog

from cluster.errors import ClusterError
from cluster.settings import Settings
from cluster.storage_copies import remove_forsaken
from cluster.store.store import Store
from cluster.wakeup import WakeUp

log = structlog.get_logger(__name__)

_INTERVAL_S = 60.0
_AT_ONCE = 1000
"""Versions that one write transaction compacts: others wait for it."""


class Housekeeping:
    """Remembers only how far it has looked."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._looked_at = 0

    async def run(self, wake_up: WakeUp) -> None:
        await wake_up.rounds(self.round, _INTERVAL_S, hears_bell=False)

    async def round(self) -> None:
        try:
            await asyncio.to_thread(self.remove_directories)
            await asyncio.to_thread(self.compact)
        except (ClusterError, OSError) as error:
            log.warning("housekeeping.failed", error=str(error))
        except Exception as error:  # as at the process boundary: recorded, and tried again
            log.error("housekeeping.crashed", exc_info=error)

    def remove_directories(self) -> None:
        """Of jobs that were deleted, before the log forgets that they were; and of copies that nobody uses."""
        while found := self._store.deletions_after(self._looked_at, _AT_ONCE):
            for gone in found:
                directory = self._settings.job_dir(gone.uid)
                if directory.is_dir():
                    shutil.rmtree(directory)
                    log.info("job_dir.removed", job=gone.uid)
                self._looked_at = gone.resource_version
        remove_forsaken(self._settings, self._store)

    def compact(self) -> None:
        while self._store.compact(self._settings.log_versions, _AT_ONCE):
            pass
        self._store.forget_requests(self._settings.request_ids_s)
