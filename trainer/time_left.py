"""How long the rest of a stage takes, by its last steps

Nothing is said before a few were seen, and no single one of them, one that saved a checkpoint or waited for a teacher,
moves what is said by more than about an eighth. Steps shorter than a second are taken together: how fast the last dozen
of them were says little. Only this process' own steps count: what an attempt before took says nothing about this one.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import NamedTuple

_LAST, _ENOUGH = 64, 5
_SHORTEST_S = 1.0


class _Stretch(NamedTuple):
    """Steps that were done one after the other."""

    steps: int
    pace: float
    """Seconds a step."""


class TimeLeft:
    """Is told of steps as they are done."""

    def __init__(self) -> None:
        self._since: tuple[int, float] | None = None
        self._stretches: deque[_Stretch] = deque(maxlen=_LAST)

    def done(self, step: int, now_s: float) -> None:
        """The first one that is told of only starts the clock: whatever had to warm up is in it."""
        steps, seconds = (step - self._since[0], now_s - self._since[1]) if self._since else (0, 0.0)
        if steps < 0:
            self._stretches.clear()
        elif steps > 0 and 0.0 <= seconds < _SHORTEST_S:
            return
        elif steps > 0 and seconds >= 0.0:
            self._stretches.append(_Stretch(steps, seconds / steps))
        self._since = step, now_s

    def seconds(self, steps_left: int) -> float | None:
        """None: too little was seen."""
        if len(self._stretches) < _ENOUGH:
            return None
        most = median(each.pace for each in self._stretches) * (1 + len(self._stretches) / 8)
        steps = sum(each.steps for each in self._stretches)
        return steps_left * sum(each.steps * min(each.pace, most) for each in self._stretches) / steps
