"""Requests that wait for a row, in the order in which they came. Filled by many threads, emptied by the engine's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import Event, Lock

from serving.batching.work import Work
from serving.errors import EngineFailed, Overloaded


class Line:
    """At most `most` wait; the next one is refused. Whoever comes rings the bell."""

    def __init__(self, most: int, bell: Event) -> None:
        self._most = most
        self._bell = bell
        self._waiting: deque[Work] = deque()
        self._lock = Lock()
        self.closed = False

    @property
    def occupied(self) -> bool:
        """Also by those who have gone meanwhile."""
        return bool(self._waiting)

    def __len__(self) -> int:
        with self._lock:
            return sum(not work.stream.cancelled for work in self._waiting)

    def join(self, work: Work) -> None:
        with self._lock:
            if self.closed:
                raise EngineFailed("the engine is closed")
            if len(self._waiting) >= self._most:
                self._waiting = deque(each for each in self._waiting if not each.stream.cancelled)
            if len(self._waiting) >= self._most:
                raise Overloaded(f"{self._most} requests are waiting already; try again in a moment")
            self._waiting.append(work)
        self._bell.set()

    def leave(self, check: Callable[[Work], bool]) -> list[Work]:
        """Take out, wherever they stand, those for whom this is true."""
        with self._lock:
            gone = [work for work in self._waiting if check(work)]
            if gone:
                self._waiting = deque(work for work in self._waiting if work not in gone)
            return gone

    def take(self, choose: Callable[[Sequence[Work]], int]) -> list[Work]:
        """As many from the head of the line as `choose` says."""
        with self._lock:
            return [self._waiting.popleft() for _ in range(choose(self._waiting))] if self._waiting else []

    def close(self) -> list[Work]:
        """Whoever waited in vain."""
        with self._lock:
            self.closed = True
            abandoned = [*self._waiting]
            self._waiting.clear()
        self._bell.set()
        return abandoned
