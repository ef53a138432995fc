"""When tokens came, and what that says: time to the first one, and between them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Of one answer, in seconds."""

    first: float
    between: tuple[float, ...]

    @classmethod
    def of(cls, asked: float, seen: Sequence[float]) -> Timing:
        return cls(seen[0] - asked, tuple(later - earlier for earlier, later in pairwise(seen)))


def summary(timings: Sequence[Timing]) -> dict[str, Any]:
    """Milliseconds at the median and the 99th percentile."""
    first = [each.first for each in timings]
    between = [gap for each in timings for gap in each.between]
    return {"n": len(timings), "ttft_ms": _percentiles(first), "inter_token_ms": _percentiles(between)}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49] * 1e3, "p99": cuts[98] * 1e3}
