"""How much one caller may ask of a gateway: requests a second, requests open at once, and bad tokens of one address.

Kept in memory, by each gateway for itself, and for only so many callers. Bodies are bounded in `middleware.py`.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.errors import RateLimited

_MOST_KEYS = 10_000


@dataclass(frozen=True)
class Limits:
    """Of each token."""

    requests_per_s: float = 200.0
    burst: float = 400.0
    open_requests: int = 512


class Buckets:
    """For each key so many at once, and so many a second from then on."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, words: str) -> None:
        """One of them; RateLimited says when to come back."""
        now = self._clock()
        level, at = self._levels.pop(key, (self._burst, now))
        level = min(self._burst, level + max(now - at, 0.0) * self._per_s)
        self._levels[key] = (level - 1.0 if level >= 1.0 else level, now)
        if len(self._levels) > _MOST_KEYS:
            self._levels.popitem(last=False)
        if level < 1.0:
            raise RateLimited(words, (1.0 - level) / self._per_s)

    def give_back(self, key: str) -> None:
        """What was taken for nothing."""
        if key in self._levels:
            level, at = self._levels[key]
            self._levels[key] = (min(level + 1.0, self._burst), at)


class CallerLimits:
    """A bucket of requests for each caller, and a count of the open ones."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._buckets = Buckets(limits.requests_per_s, limits.burst, clock)
        self._open: Counter[str] = Counter()

    @contextmanager
    def one(self, key: str) -> Iterator[None]:
        """One more request, open while the block lasts; RateLimited says when to come back."""
        if self._open[key] >= self._limits.open_requests:
            raise RateLimited(f"{self._limits.open_requests} requests of this token are open already")
        self._buckets.take(key, f"more than {self._limits.requests_per_s:g} requests a second of this token")
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]
