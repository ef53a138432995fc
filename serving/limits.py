"""How much one caller may ask of a gateway: requests a second, and requests open at once.

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


class CallerLimits:
    """A bucket of requests for each caller, and a count of the open ones."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._open: Counter[str] = Counter()

    @contextmanager
    def one(self, key: str) -> Iterator[None]:
        """One more request, open while the block lasts; RateLimited says when to come back."""
        if self._open[key] >= self._limits.open_requests:
            raise RateLimited(f"{self._limits.open_requests} requests of this token are open already")
        self._take(key)
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    def _take(self, key: str) -> None:
        now, limits = self._clock(), self._limits
        level, at = self._levels.pop(key, (limits.burst, now))
        level = min(limits.burst, level + max(now - at, 0.0) * limits.requests_per_s)
        self._levels[key] = (level - 1.0 if level >= 1.0 else level, now)
        if len(self._levels) > _MOST_KEYS:
            self._levels.popitem(last=False)
        if level < 1.0:
            wait_s = (1.0 - level) / limits.requests_per_s
            raise RateLimited(f"more than {limits.requests_per_s:g} requests a second of this token", wait_s)
