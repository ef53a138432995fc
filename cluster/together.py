"""Group commit: what waits while the store is busy is handed to it at once, in one transaction with one sync to disk.

Each caller goes on only after the call that took its own part has returned. Knows nothing of what is written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Part = TypeVar("Part")
Answer = TypeVar("Answer")

_AT_ONCE = 128
"""Whoever else wants to write waits for them."""
_PATIENCE_S = 0.005
"""For those who are on their way."""


class Together(Generic[Part, Answer]):
    """`work` takes parts in the order in which they came, in a thread, and answers each: by a value or an error.

    What it raises itself is told to all whose parts it had taken.
    """

    def __init__(self, work: Callable[[Sequence[Part]], Sequence[Answer | Exception]]) -> None:
        self._work = work
        self._waiting: list[tuple[Part, asyncio.Future[Answer]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._coming = 0
        self._all_are_here = asyncio.Event()
        self._all_are_here.set()

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """Whoever is in this block will soon add a part, or none: for a moment others wait for it."""
        self._coming += 1
        self._all_are_here.clear()
        try:
            yield
        finally:
            self._coming -= 1
            if not self._coming:
                self._all_are_here.set()

    async def add(self, part: Part) -> Answer:
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((part, done))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work_off())
        return await done

    async def _work_off(self) -> None:
        while self._waiting:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_are_here.wait(), _PATIENCE_S)
            taken, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
            parts, waiting = zip(*taken, strict=True)
            try:
                answers = await asyncio.to_thread(self._work, parts)
            except Exception as error:  # noqa: BLE001  a process boundary within: each caller is told
                answers = [error] * len(parts)
            for done, answer in zip(waiting, answers, strict=True):
                _tell(done, answer)


def _tell(done: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    if done.done():  # its caller went away
        return
    if isinstance(answer, Exception):
        done.set_exception(answer)
    else:
        done.set_result(answer)
