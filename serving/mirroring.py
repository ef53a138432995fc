"""Requests that a canary is asked in the dark: after the client has its answer, and never in the client's way.

A pair of outcomes goes to whoever compares them. That takes longer than to answer, so what it has no time for is asked
all the same: a canary that answered fewer requests than the stable revision would look faster than it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from serving.answers import DONE
from serving.backend import BackendRequest, Backends, Head
from serving.errors import ServingError
from serving.routes import Backend, Route

_TIMEOUT_S = 600.0
"""For a request that says nothing of its time."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What one revision made of a request."""

    backend: Backend
    status: int
    """Of the HTTP answer; 0 where there was none."""
    token_ids: Mapping[int, tuple[int, ...]]
    """Of each choice."""
    first_token_s: float | None
    """Until the first chunk with tokens; for whole answers that is the only one."""
    duration_s: float
    complete: bool
    """It ended as an answer ends; a stream may end with an error instead."""
    error: str = ""

    @property
    def is_whole(self) -> bool:
        """A good answer, from its beginning to its end."""
        return self.status == 200 and self.complete

    @property
    def wrote(self) -> bool:
        """There are tokens in it."""
        return any(self.token_ids.values())


@dataclass(frozen=True)
class MirroredPair:
    """The same request, answered by the stable revision and by another."""

    route: str
    request: BackendRequest
    stable: Outcome
    canary: Outcome


class Mirroring:
    """Asks the canary, and hands each pair over."""

    def __init__(
        self,
        backends: Backends,
        on_mirrored: Callable[[MirroredPair], Awaitable[None]],
        *,
        most_asked: int = 64,
        most_compared: int = 8,
    ) -> None:
        """Of each canary at most so many are asked, and so many compared, at once: one that hangs delays no other."""
        self._backends = backends
        self._on_mirrored = on_mirrored
        self._asking, self._comparing = _Places(most_asked), _Places(most_compared)
        self._running: set[asyncio.Task[None]] = set()
        self.left_out = 0
        """Requests that were not asked in the dark, as too many were under way."""
        self.not_compared = 0
        """Requests that were asked, and then found too many others being compared."""

    def start(self, route: Route, backend: Backend, request: BackendRequest, stable: Outcome) -> None:
        """Ask in the background."""
        if not self._asking.take(backend.app):
            self.left_out += 1
            return
        task = asyncio.ensure_future(self._mirror(route, backend, request, stable))
        self._running.add(task)
        task.add_done_callback(lambda task: self._ended(request.request_id, task))

    async def aclose(self) -> None:
        for task in [*self._running]:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _mirror(self, route: Route, backend: Backend, request: BackendRequest, stable: Outcome) -> None:
        try:
            canary = await self._asked(backend, request)
        finally:
            self._asking.give_back(backend.app)
        if not self._comparing.take(backend.app):
            self.not_compared += 1
            return
        try:
            await self._on_mirrored(MirroredPair(route.name, request, stable, canary))
        finally:
            self._comparing.give_back(backend.app)

    async def _asked(self, backend: Backend, request: BackendRequest) -> Outcome:
        head: Head | None = None
        last, ids, began, first, error = b"", dict[int, tuple[int, ...]](), time.monotonic(), None, ""
        try:
            async with (
                asyncio.timeout(request.deadline_s or _TIMEOUT_S),
                aclosing(self._backends.call(backend.app, request)) as items,
            ):
                async for item in items:
                    if isinstance(item, Head):
                        head = item
                        continue
                    last = item.data
                    if first is None and item.token_ids:
                        first = time.monotonic() - began
                    for index, more in item.token_ids.items():
                        ids[index] = ids.get(index, ()) + more
        except (ServingError, TimeoutError) as failure:
            error = str(failure) or "no answer in time"
        complete = head is not None and not error and (not head.is_stream or last.endswith(DONE))
        return Outcome(backend, head.status if head else 0, ids, first, time.monotonic() - began, complete, error)

    def _ended(self, request_id: str, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("request %s was mirrored and could not be handed over", request_id, exc_info=error)


class _Places:
    """So many at once for each canary."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()

    def take(self, app: str) -> bool:
        """Whether there was one left."""
        if self._taken[app] >= self._most:
            return False
        self._taken[app] += 1
        return True

    def give_back(self, app: str) -> None:
        self._taken[app] -= 1
        if not self._taken[app]:
            del self._taken[app]
