"""WatchJobs: a snapshot, then every change in order, for a thousand watchers at once.

The store is read once for all of them: a pump reads what is new into a short memory and wakes those whom it concerns.
Whoever is further behind than that memory reads on from the store by itself, so a slow reader costs nobody but itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import structlog
from athanor.v1 import job_pb2
from athanor.v1 import job_service_pb2 as messages

from cluster.errors import ClusterError, NotFound
from cluster.security.caller import Caller, caller
from cluster.services.visible import job_for
from cluster.store.log_rows import StoredChange
from cluster.store.records import StoredJob
from cluster.store.store import Store
from cluster.wakeup import WakeUp
from cluster.wire import event_to_proto, job_to_proto

log = structlog.get_logger(__name__)

_UNKNOWN = -1  # an empty store is at 0
_PAGE = 200
_POLL_S = 1.0
"""Changes of other control planes on the same store ring no bell here."""
_GATHER_S = 0.01
"""Changes that come close together wake their watchers once."""
_REMEMBERED = 1024
_BOOKMARK_S = 10.0


@dataclass(eq=False)
class Watcher:
    """Who waits, and for what."""

    who: Caller
    uid: str
    project: str
    news: asyncio.Event = field(default_factory=asyncio.Event)
    known: int = 0
    """When there are news: nothing that it wants lies between where it was and here."""

    def wants(self, uid: str, project: str) -> bool:
        return self.uid in ("", uid) and self.project in ("", project) and self.who.reaches(project)

    def listen(self) -> None:
        """From now on news are new."""
        self.news.clear()
        self.known = 0


@dataclass(frozen=True)
class Told:
    """A change, and the one message that all who are told of it share."""

    uid: str
    project: str
    message: messages.WatchJobsResponse


def told(change: StoredChange) -> Told:
    message = messages.WatchJobsResponse(resource_version=change.resource_version)
    if change.job is None:
        gone = job_pb2.Job(uid=change.uid, project=change.project, resource_version=change.resource_version)
        message.job.CopyFrom(gone)
        message.deleted = True
    else:
        message.job.CopyFrom(job_to_proto(change.job))
    if change.event is not None:
        message.event.CopyFrom(event_to_proto(change.event))
    return Told(change.uid, change.project, message)


class Feed:
    """The newest changes, in memory. Works only while somebody watches."""

    def __init__(self, store: Store, wake_up: WakeUp) -> None:
        self.head = _UNKNOWN
        """Everything up to here is known."""
        self._store = store
        self._wake_up = wake_up
        self._base: int | None = None
        self._memory: deque[Told] = deque()
        self._watchers: set[Watcher] = set()
        self._pump: asyncio.Task[None] | None = None
        self._failure: ClusterError | None = None

    @contextmanager
    def watched_by(self, watcher: Watcher) -> Iterator[None]:
        """The watcher is woken while the block lasts."""
        self._watchers.add(watcher)
        try:
            yield
        finally:
            self._watchers.discard(watcher)
            if not self._watchers and self._pump is not None:
                self._pump.cancel()
                self._pump = None

    def start(self) -> None:
        """Begin where the store is now, unless it runs."""
        if self.is_running:
            return
        self._failure = None
        self._base, self.head = None, _UNKNOWN
        self._memory.clear()
        self._pump = asyncio.create_task(self._run(), name="watch-feed")

    @property
    def is_running(self) -> bool:
        return self._pump is not None and not self._pump.done()

    @property
    def has_begun(self) -> bool:
        return self._base is not None or self._failure is not None

    def remembers(self, cursor: int) -> bool:
        """Whether all changes after `cursor` are in memory; raises what ended the feed."""
        if self._failure is not None:
            raise self._failure
        return self._base is not None and self._base <= cursor

    def after(self, cursor: int) -> list[Told]:
        """Changes behind the cursor, in order."""
        found = list[Told]()
        for one in reversed(self._memory):
            if one.message.resource_version <= cursor:
                break
            found.append(one)
        return found[::-1]

    async def _run(self) -> None:
        try:
            self._base = self.head = await asyncio.to_thread(self._store.head_version)
            self._wake_all()
            while True:
                ticket = self._wake_up.ticket()
                await self._read()
                await self._wake_up.wait(ticket, _POLL_S)
                await asyncio.sleep(_GATHER_S)
        except ClusterError as error:
            self._failure = error
            self._wake_all()
        except Exception as error:  # a process boundary within: recorded, and told to all who wait
            log.error("watch.failed", exc_info=error)
            self._failure = ClusterError("INTERNAL", "internal error; the server's log has it under watch.failed")
            self._wake_all()

    async def _read(self) -> None:
        """All that is new in the store."""
        while True:
            found = [told(one) for one in await asyncio.to_thread(self._store.changes, self.head, "", _PAGE)]
            for one in found:
                self._memory.append(one)
                self.head = one.message.resource_version
            while len(self._memory) > _REMEMBERED:
                self._base = self._memory.popleft().message.resource_version
            self._tell(found)
            if len(found) < _PAGE:
                return

    def _tell(self, news: Sequence[Told]) -> None:
        """Wake those whom it concerns and who are not awake yet."""
        for watcher in self._watchers:
            if watcher.news.is_set():
                continue
            first = next((one for one in news if watcher.wants(one.uid, one.project)), None)
            if first is not None:
                watcher.known = first.message.resource_version - 1
                watcher.news.set()

    def _wake_all(self) -> None:
        for watcher in self._watchers:
            watcher.news.set()


async def watch(
    store: Store, feed: Feed, request: messages.WatchJobsRequest
) -> AsyncIterator[messages.WatchJobsResponse]:
    """What WatchJobs answers. Ends by itself only when the one job that it is about was deleted."""
    watcher = Watcher(caller(), request.uid, request.project)
    cursor = await asyncio.to_thread(_check, store, watcher, request.after_resource_version)
    if cursor == 0:
        cursor = await asyncio.to_thread(store.head_version)
        async for job in _snapshot(store, watcher, cursor):
            yield messages.WatchJobsResponse(job=job_to_proto(job), resource_version=job.resource_version)
        if request.bookmarks:
            yield messages.WatchJobsResponse(resource_version=cursor)
    with feed.watched_by(watcher):
        feed.start()
        async for message in _changes(store, feed, watcher, cursor, request.bookmarks):
            yield message
            if message.deleted and watcher.uid:
                return


def _check(store: Store, watcher: Watcher, after: int) -> int:
    """Whether this may be watched from there."""
    if watcher.project:
        watcher.who.check_writes_to(watcher.project)
    store.check_cursor(after)
    if watcher.uid:
        try:
            job_for(store, watcher.who, watcher.uid)
        except NotFound:
            gone = store.find_deletion(watcher.uid)
            if (
                after == 0
                or gone is None
                or gone.resource_version <= after
                or not watcher.wants(gone.uid, gone.project)
            ):
                raise
    return after


async def _snapshot(store: Store, watcher: Watcher, head: int) -> AsyncIterator[StoredJob]:
    """Jobs in the order of resource versions, so that whoever is cut off goes on behind what was seen last.

    One that changes meanwhile is past `head` and comes with its changes, which begin there.
    """
    cursor = 0
    while page := await asyncio.to_thread(store.snapshot_page, cursor, watcher.uid, _PAGE):
        for job in page:
            if job.resource_version > head:
                return
            if watcher.wants(job.uid, job.project):
                yield job
        cursor = page[-1].resource_version


async def _changes(
    store: Store, feed: Feed, watcher: Watcher, cursor: int, bookmarks: bool
) -> AsyncIterator[messages.WatchJobsResponse]:
    """From the feed's memory; from the store as long as that does not reach back to the cursor."""
    while True:
        watcher.listen()
        if is_fast := feed.remembers(cursor):
            found, upto = feed.after(cursor), feed.head
        else:
            found, upto = await asyncio.to_thread(_stored, store, cursor, watcher.uid)
        for one in found:
            if watcher.wants(one.uid, one.project):
                yield one.message
        cursor = max(cursor, upto)  # the store may have told of more than the feed knows by now
        if is_fast or (len(found) < _PAGE and not feed.has_begun):
            if not await _news(watcher, bookmarks):
                cursor = max(cursor, feed.head)
                yield messages.WatchJobsResponse(resource_version=cursor)
            cursor = max(cursor, watcher.known)


def _stored(store: Store, cursor: int, uid: str) -> tuple[list[Told], int]:
    """A page of changes, and up to where all are known with it."""
    head = store.head_version()
    found = [told(one) for one in store.changes(cursor, uid, _PAGE)]
    last = found[-1].message.resource_version if found else cursor
    return found, last if len(found) == _PAGE else max(head, last)  # some may have come since `head` was read


async def _news(watcher: Watcher, bookmarks: bool) -> bool:
    """Waits for news; False when it is time for a bookmark."""
    if not bookmarks:
        return await watcher.news.wait()
    with suppress(TimeoutError):
        async with asyncio.timeout(_BOOKMARK_S):
            return await watcher.news.wait()
    return watcher.news.is_set()
