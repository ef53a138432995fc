"""The time as a control plane tells it: the wall's when it starts, and steady from then on.

A wall clock that is set an hour forward would end every lease at once, and one set back would keep the dead alive. So a
difference is never jumped over: this clock runs a tenth faster or slower until it is made up, and never backwards.
A machine that slept has not stopped the time for anybody else, so the sleep counts. Times that another process stored
are another clock's: policy.py does not trust those that lie ahead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_SLEW = 0.1
"""Of the time that passed: the most by which this clock goes wrong on purpose."""


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class SteadyClock:
    """Seconds since 1970. Threads may share it."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = _since_boot) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._lock = threading.Lock()
        self._now_s, self._at_s = wall(), monotonic()

    def __call__(self) -> float:
        with self._lock:
            at_s = self._monotonic()
            passed_s, self._at_s = at_s - self._at_s, at_s
            steady_s = self._now_s + passed_s
            most_s = _SLEW * passed_s
            self._now_s = steady_s + min(max(self._wall() - steady_s, -most_s), most_s)
            return self._now_s
