"""One bell for everybody who waits for a change: streams, and the reconciler. May be rung from any thread.

Only a hint that something changed: who hears it looks at the store, and looks now and then without it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from cluster.errors import ShuttingDown

_REST_S = 0.1
_REST_SHARE = 9.0
"""A round is followed by at least that much more time without one."""


class WakeUp:
    """Take a `ticket` before you look, `wait` on it afterwards: a change in between is not missed."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._end = asyncio.Event()
        self._is_closed = False

    def ring(self) -> None:
        """Wake everybody who holds a ticket."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        rung, self._event = self._event, asyncio.Event()
        rung.set()

    def close(self) -> None:
        """End every wait, now and from now on, by ShuttingDown."""
        self._is_closed = True
        self._end.set()
        self._ring()

    def ticket(self) -> asyncio.Event:
        return self._event

    async def wait(self, ticket: asyncio.Event, timeout_s: float) -> None:
        """Return when the bell rang after the ticket was taken, or when the time is over."""
        if not self._is_closed:
            with contextlib.suppress(TimeoutError):  # unlike `wait_for`, `timeout` swallows no cancellation
                async with asyncio.timeout(timeout_s):
                    await ticket.wait()
        if self._is_closed:
            raise ShuttingDown("SHUTTING_DOWN", "this control plane is ending; connect again")

    async def sleep(self, seconds: float) -> None:
        """Return when the time is over, whatever rings."""
        await self.wait(self._end, seconds)

    async def rounds(self, one: Callable[[], Awaitable[None]], interval_s: float, *, hears_bell: bool = True) -> None:
        """`one` again and again, until the end: now and then, and at each ring of the bell if it shall hear it.

        The first ring after a quiet time is heard at once; while it rings and rings, rounds take a share of the time.
        """
        with contextlib.suppress(ShuttingDown):
            while True:
                ticket, began_s = self.ticket() if hears_bell else self._end, self._loop.time()
                await one()
                ended_s = self._loop.time()
                await self.wait(ticket, interval_s)
                rest_s = min(max(_REST_S, (ended_s - began_s) * _REST_SHARE), interval_s)
                await self.sleep(ended_s + rest_s - self._loop.time())
