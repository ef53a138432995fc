"""What a gateway tells the judges of canaries: pairs of answers, and what became of the requests of users.

A call to an application that is gone never ends by itself, so each has a time, after which it is given up; and a judge
that is in the table of routes no more is told nothing. Knows no Ray: `Ask` carries the calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from serving.errors import ServingError
from serving.mirroring import MirroredPair
from serving.routes import RouteTable

_OBSERVE_S = 120.0
"""Waiting for those that are compared before it is most of it."""
_NOTE_S = 10.0
logger = logging.getLogger(__name__)


class Ask(Protocol):
    """The way to the application of a judge."""

    async def __call__(self, app: str, method: str, *args: object) -> object:
        """A ServingError where nobody took it; cancelling it ends the work there."""


class Judges:
    """Of all canaries behind one gateway. A judge that is gone, or too busy, misses something; nobody else does."""

    def __init__(
        self,
        ask: Ask,
        table: Callable[[], RouteTable],
        *,
        observe_s: float = _OBSERVE_S,
        note_s: float = _NOTE_S,
    ) -> None:
        """`table` is the one that holds by now."""
        self._ask = ask
        self._table = table
        self._observe_s, self._note_s = observe_s, note_s

    async def observe(self, pair: MirroredPair) -> None:
        """To the judge of this pair's canary, as long as that is the one that is judged."""
        route = self._table().route(pair.route)
        if route is None or route.judge_app is None or route.mirror is None:
            return
        if route.mirror.app == pair.canary.backend.app:
            await self._tell(route.judge_app, self._observe_s, f"request {pair.request.request_id}", "observe", pair)

    async def note_live(self, judge_app: str, failed: tuple[bool, ...]) -> None:
        """Of each request of a canary's own users, whether it failed."""
        if any(route.judge_app == judge_app for route in self._table().routes):
            await self._tell(judge_app, self._note_s, f"{len(failed)} requests of its canary", "note_live", failed)

    async def _tell(self, judge_app: str, within_s: float, what: str, method: str, *args: object) -> None:
        try:
            async with asyncio.timeout(within_s):
                await self._ask(judge_app, method, *args)
        except (ServingError, TimeoutError) as error:
            logger.warning("%s missed %s: %s", judge_app, what, str(error) or f"no answer within {within_s:g} s")
