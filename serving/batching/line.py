"""Requests that wait for a row, in the order in which they came. Filled by many threads, emptied by the engine's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition

from serving.batching.work import Work
from serving.errors import EngineFailed, Overloaded


class Line:
    """At most `most` wait; the next one is refused."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[Work] = deque()
        self._changed = Condition()
        self._stirred = False
        self.closed = False

    def __len__(self) -> int:
        with self._changed:
            return sum(not work.stream.cancelled for work in self._waiting)

    def join(self, work: Work) -> None:
        with self._changed:
            if self.closed:
                raise EngineFailed("the engine is closed")
            if len(self._waiting) >= self._most:
                self._waiting = deque(each for each in self._waiting if not each.stream.cancelled)
            if len(self._waiting) >= self._most:
                raise Overloaded(f"{self._most} requests are waiting already; try again in a moment")
            self._waiting.append(work)
            self._changed.notify_all()

    def stir(self) -> None:
        """Somebody went; whoever waits for news looks again."""
        with self._changed:
            self._stirred = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Until somebody waits, somebody went, or the line is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stirred or self.closed)
            self._stirred = False

    def leave(self, check: Callable[[Work], bool]) -> list[Work]:
        """Take out, wherever they stand, those for whom this is true."""
        with self._changed:
            gone = [work for work in self._waiting if check(work)]
            if gone:
                self._waiting = deque(work for work in self._waiting if work not in gone)
            return gone

    def take(self, choose: Callable[[Sequence[Work]], int]) -> list[Work]:
        """As many from the head of the line as `choose` says."""
        with self._changed:
            return [self._waiting.popleft() for _ in range(choose(self._waiting))] if self._waiting else []

    def close(self) -> list[Work]:
        """Whoever waited in vain."""
        with self._changed:
            self.closed = True
            abandoned = [*self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
            return abandoned
