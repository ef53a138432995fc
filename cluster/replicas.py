"""Several control planes on one store: who lives, who leads, and whose each job is.

A job is tended by one replica, chosen by rendezvous hashing over those that live, so that one that dies hands on its
own jobs alone (Thaler and Ravishankar 1998). What only one may do, admission above all, the leader does. Both divide
the work; that nothing is done twice is the affair of the store's guards, which hold when two believe the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence

import structlog

from cluster.errors import StoreUnavailable
from cluster.store.store import Store
from cluster.wakeup import WakeUp

log = structlog.get_logger(__name__)

_BEATS_PER_LEASE = 5


class Replicas:
    """This replica among the others. Between two beats it goes by what the last one said, while its lease lasts."""

    def __init__(
        self, store: Store, name: str, address: str, lease_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`name` is of one process at a time, and the same when it is started again: it then goes on at once.

        `address` is the host:port under which drivers reach this replica.
        """
        self.id = name
        self._store = store
        self._address = address
        self._lease_s = lease_s
        self._clock = clock
        self._living: dict[str, str] = {}
        self._leads = False
        self._beaten_at = -lease_s
        self.changed_us = store.now_us()
        """When the set of those that live last changed, as far as this one saw: drivers may have to find another."""

    async def run(self, wake_up: WakeUp) -> None:
        """Beat on time, however long a round of the others takes."""
        await wake_up.rounds(self._try_to_beat, self._lease_s / _BEATS_PER_LEASE, hears_bell=False)

    async def _try_to_beat(self) -> None:
        try:
            await self.beat()
        except StoreUnavailable as error:
            log.warning("replicas.not_beaten", replica=self.id, error=str(error))

    async def beat(self) -> None:
        """Say that this one lives, and see who else does; at most every fifth of a lease."""
        now = self._clock()
        if now - self._beaten_at < self._lease_s / _BEATS_PER_LEASE:
            return
        living, leads = await asyncio.to_thread(self._store.beat, self.id, self._address, self._lease_s)
        self._beaten_at = now
        if set(living) != set(self._living) or leads != self._leads:
            log.info("replicas.changed", replica=self.id, living=sorted(living), leads=leads)
            self.changed_us = self._store.now_us() if self._living else self.changed_us
        self._living, self._leads = living, leads

    async def leave(self) -> None:
        """Hand on what is this one's, at its end."""
        self._living, self._leads = {}, False
        try:
            await asyncio.to_thread(self._store.leave, self.id)
        except StoreUnavailable as error:
            log.warning("replicas.not_left", replica=self.id, error=str(error))

    @property
    def leads(self) -> bool:
        return self._leads and self._is_certain

    def tends(self, uid: str) -> bool:
        """Whether the job of this uid is this one's."""
        if not (self._is_certain and self._living):
            return False
        return max(self._living, key=lambda each: _weight(each, uid)) == self.id

    @property
    def addresses(self) -> Sequence[str]:
        """Of all that live, this one first."""
        others = sorted(address for each, address in self._living.items() if each != self.id)
        return [self._address, *others]

    @property
    def _is_certain(self) -> bool:
        return self._clock() - self._beaten_at < self._lease_s


def _weight(replica_id: str, uid: str) -> bytes:
    return hashlib.sha256(f"{replica_id}/{uid}".encode()).digest()
