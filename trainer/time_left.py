"""How long the rest of a stage takes, by its last steps, and by what comes back less often than they tell

Nothing is said before a few were seen, and no single one of them, one that saved a checkpoint or waited for a teacher,
moves what is said by more than about an eighth: what it took beyond that is added as such steps come again, until all
of it is spread over the steps between them. Steps shorter than a second are taken together: how fast the last dozen of
them were says little. Only this process' own steps count: what an attempt before took says nothing about this one.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import NamedTuple

_LAST, _ENOUGH = 64, 5
_SHORTEST_S = 1.0
_SLOW, _SLOW_KEPT = 3.0, 256
"""Slow is what takes more than this many times the median; so many of them are kept, however long ago they were."""
_AT_ONCE, _COMING_BACK = 1 / 32, 3 / 32
"""By how much of the median one stretch moves what is said: as one of the last, and as one that may come back."""


class _Stretch(NamedTuple):
    """Steps that were done one after the other."""

    steps: int
    pace: float
    """Seconds a step."""
    end: int
    """Steps that were seen when it was over."""


class TimeLeft:
    """Is told of steps as they are done."""

    def __init__(self) -> None:
        self._since: tuple[int, float] | None = None
        self._forget()

    def _forget(self) -> None:
        self._stretches: deque[_Stretch] = deque(maxlen=_LAST)
        self._slow: deque[_Stretch] = deque()
        self._slow_since = self._seen = 0

    def done(self, step: int, now_s: float) -> None:
        """The first one that is told of only starts the clock: whatever had to warm up is in it."""
        steps, seconds = (step - self._since[0], now_s - self._since[1]) if self._since else (0, 0.0)
        if steps < 0:
            self._forget()
        elif steps > 0 and 0.0 <= seconds < _SHORTEST_S:
            return
        elif steps > 0 and seconds >= 0.0:
            self._add(steps, seconds / steps)
        self._since = step, now_s

    def _add(self, steps: int, pace: float) -> None:
        self._seen += steps
        stretch = _Stretch(steps, pace, self._seen)
        if self._stretches and pace > _SLOW * self._usual():
            self._slow.append(stretch)
            if len(self._slow) > _SLOW_KEPT:
                self._slow_since = self._slow.popleft().end
        self._stretches.append(stretch)

    def seconds(self, steps_left: int) -> float | None:
        """None: too little was seen."""
        if len(self._stretches) < _ENOUGH:
            return None
        usual = self._usual()
        most = usual * min(_SLOW, 1 + len(self._stretches) * _AT_ONCE)
        steps = sum(each.steps for each in self._stretches)
        recent = sum(each.steps * min(each.pace, most) for each in self._stretches) / steps
        return steps_left * (recent + self._coming_back(usual, most))

    def _usual(self) -> float:
        return median(each.pace for each in self._stretches)

    def _coming_back(self, usual: float, most: float) -> float:
        """Seconds a step: what slow stretches took beyond `most`, over all steps since the first that is kept."""
        steps = self._seen - self._slow_since
        beyond = [each.steps * (each.pace - most) for each in self._slow if each.pace > most]
        return sum(min(one, usual * steps * _COMING_BACK) for one in beyond) / steps
