"""Work for many callers by few calls: what waits while a call is under way is handed to the next one at once.

So a hundred jobs that come together are one transaction with one sync to disk. Each caller goes on only after the call
that took its own part has returned. Knows nothing of what is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Part = TypeVar("Part")
Answer = TypeVar("Answer")

_AT_ONCE = 128
"""Whoever else wants to write waits for them."""
_LATE_S = 0.05


class Together(Generic[Part, Answer]):
    """`work` takes parts in the order in which they came, in a thread, and answers each: by a value or an error.

    What it raises itself is told to all whose parts it had taken. With several `threads` a call that takes long holds
    up nobody who comes later: another thread goes on.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Part]], Sequence[Answer | Exception]],
        *,
        at_once: int = _AT_ONCE,
        threads: int = 1,
    ) -> None:
        self._work = work
        self._at_once, self._threads = at_once, threads
        self._waiting: list[tuple[Part, asyncio.Future[Answer]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        """Held here, since the loop itself holds tasks loosely."""
        self._working = self._late = 0
        """Those who work off what waits, and of them those whose call takes long."""

    async def add(self, part: Part) -> Answer:
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((part, done))
        self._go_on()
        return await done

    def _go_on(self) -> None:
        """Somebody is there for what waits, unless all have their hands full."""
        if self._waiting and self._working == self._late < self._threads:
            self._working += 1
            worker = asyncio.create_task(self._work_off())
            self._tasks.add(worker)
            worker.add_done_callback(self._tasks.discard)

    async def _work_off(self) -> None:
        """Ends when nothing waits, and is gone with that same look: whoever comes then begins anew."""
        while self._waiting:
            taken, self._waiting = self._waiting[: self._at_once], self._waiting[self._at_once :]
            parts, waiting = zip(*taken, strict=True)
            try:
                answers = await self._called(parts)
            except Exception as error:  # noqa: BLE001  a process boundary within: each caller is told
                answers = [error] * len(parts)
            for done, answer in zip(waiting, answers, strict=True):
                _tell(done, answer)
        self._working -= 1

    async def _called(self, parts: Sequence[Part]) -> Sequence[Answer | Exception]:
        call = asyncio.get_running_loop().run_in_executor(None, self._work, parts)
        if self._threads > 1 and not (await asyncio.wait([call], timeout=_LATE_S))[0]:
            self._late += 1
            self._go_on()
            await asyncio.wait([call])
            self._late -= 1
        return await call


def _tell(done: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    if done.done():  # its caller went away
        return
    if isinstance(answer, Exception):
        done.set_exception(answer)
    else:
        done.set_result(answer)
