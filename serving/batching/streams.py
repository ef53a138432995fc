"""From the engine's thread to the event loops that asked: what one step made goes to each loop in a single call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Stream(Generic[Item]):
    """An async iterator that one consumer reads; made in its event loop, filled through an `Outbox`."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake`: called when the consumer goes, from its own thread."""
        self.cancelled = False
        self.loop = asyncio.get_running_loop()
        self._wake = wake
        self._items: deque[tuple[Item | Exception, bool]] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._ended = False

    def __aiter__(self) -> Stream[Item]:
        return self

    async def __anext__(self) -> Item:
        while not self._items:
            if self._ended:
                raise StopAsyncIteration
            self._reader = self.loop.create_future()
            await self._reader
        item, self._ended = self._items.popleft()
        if self._ended:
            self._items.clear()
        if isinstance(item, Exception):
            raise item
        return item

    async def aclose(self) -> None:
        if not self._ended:
            self._ended = self.cancelled = True
            self._items.clear()
            self._wake()

    def put(self, item: Item | Exception, last: bool) -> None:
        """In the event loop's thread."""
        if self._ended:
            return
        self._items.append((item, last))
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


Letter = tuple[Stream[Any], Any, bool]


class Outbox:
    """What waits to be handed out. Belongs to one thread."""

    def __init__(self) -> None:
        self._by_loop: dict[asyncio.AbstractEventLoop, list[Letter]] = {}

    def add(self, stream: Stream[Item], item: Item | Exception, *, last: bool) -> None:
        self._by_loop.setdefault(stream.loop, []).append((stream, item, last))

    def send(self) -> None:
        """A loop that is gone has nobody left who would read."""
        waiting, self._by_loop = self._by_loop, {}
        for loop, letters in waiting.items():
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_deliver, letters)


def _deliver(letters: list[Letter]) -> None:
    for stream, item, last in letters:
        stream.put(item, last)
