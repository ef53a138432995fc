"""Spans of time as people write them on the command line: 30s, 15m, 12h, 90d."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def read(text: str) -> timedelta | None:
    """None for what is no span."""
    found = re.fullmatch(r"(\d+)([smhd])", text)
    return timedelta(seconds=int(found[1]) * _UNITS_S[found[2]]) if found else None
