"""How much one caller may ask for: calls a second, streams held open, and the size of what is sent.

Buckets are kept in memory, of each control plane for itself, and only so many of them. Knows nothing of tokens: a key
is whatever tells callers apart.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.errors import ResourceExhausted

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Of a request; gRPC itself refuses more. Answers may be larger: they are ours."""
MAX_SPEC_BYTES = 256 * 1024
"""Of a job's spec, as it is sent."""
_MOST_KEYS = 10_000


@dataclass
class Bucket:
    """A token bucket: `rate` a second, `burst` at once."""

    rate: float
    burst: float
    level: float
    at: float

    def take(self, now: float) -> float:
        """0 when there was one to take, else the seconds until there will be."""
        self.level = min(self.burst, self.level + max(now - self.at, 0.0) * self.rate)
        self.at = now
        if self.level < 1.0:
            return (1.0 - self.level) / self.rate
        self.level -= 1.0
        return 0.0


class Rate:
    """A bucket for each key."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def wait_s(self, key: str) -> float:
        """0 when one more is fine, else how long to wait before the next."""
        now = self._clock()
        bucket = self._buckets.pop(key, None) or Bucket(self._rate, self._burst, self._burst, now)
        self._buckets[key] = bucket
        if len(self._buckets) > _MOST_KEYS:
            self._buckets.popitem(last=False)
        return bucket.take(now)

    def give_back(self, key: str) -> None:
        """One that was taken, and was none of what is counted."""
        if bucket := self._buckets.get(key):
            bucket.level = min(bucket.level + 1.0, bucket.burst)

    def check(self, key: str) -> None:
        """ResourceExhausted / RATE_LIMITED, with the time to wait."""
        if wait_s := self.wait_s(key):
            message = f"more than {self._rate:g} calls a second; wait {wait_s:.1g} s before the next"
            raise ResourceExhausted("RATE_LIMITED", message, retry_after_s=wait_s)


class Streams:
    """How many streams each key holds open."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, key: str) -> Iterator[None]:
        """One more while the block lasts; ResourceExhausted / TOO_MANY_STREAMS."""
        if self._open[key] >= self._most:
            message = f"{self._most} watches and logs are held open already; close some"
            raise ResourceExhausted("TOO_MANY_STREAMS", message)
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]
