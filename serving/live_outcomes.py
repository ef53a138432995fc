"""Whether the requests that a canary got from its users went well, on their way to its judge: in their order, together.

What is more than a bound is let go whatever it was, so that shares stay what they are. Each judge is told by itself:
one that does not listen keeps no other waiting. Knows no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

_EVERY_S = 1.0
_MOST = 200


class LiveOutcomes:
    """Of all canaries behind one gateway."""

    def __init__(
        self, tell: Callable[[str, tuple[bool, ...]], Awaitable[None]], *, every_s: float = _EVERY_S, most: int = _MOST
    ) -> None:
        """`tell` gets the application of a judge, and of each request whether it failed; at most `most` each time."""
        self._tell = tell
        self._every_s, self._most = every_s, most
        self._waiting: dict[str, list[bool]] = {}
        self._telling: dict[str, asyncio.Task[None]] = {}

    def note(self, judge_app: str, *, failed: bool) -> None:
        """From a running event loop."""
        waiting = self._waiting.setdefault(judge_app, [])
        if len(waiting) < self._most:
            waiting.append(failed)
        if judge_app not in self._telling:
            self._telling[judge_app] = asyncio.ensure_future(self._tell_one(judge_app))

    async def aclose(self) -> None:
        telling = [*self._telling.values()]
        for task in telling:
            task.cancel()
        await asyncio.gather(*telling, return_exceptions=True)

    async def _tell_one(self, judge_app: str) -> None:
        try:
            while judge_app in self._waiting:
                await asyncio.sleep(self._every_s)
                await self._tell(judge_app, tuple(self._waiting.pop(judge_app)))
        finally:
            del self._telling[judge_app]
