"""How long the rest of a stage takes, by its last steps

Nothing is said before a few were seen, and no single one of them, one that saved a checkpoint or waited for a teacher,
moves what is said by more than about an eighth. Only this process' own steps count: what an attempt before took says
nothing about this one.
"""

from __future__ import annotations

from collections import deque
from statistics import median

_LAST, _ENOUGH = 64, 5


class TimeLeft:
    """Is told of steps as they are done."""

    def __init__(self) -> None:
        self._before: tuple[int, float] | None = None
        self._paces: deque[float] = deque(maxlen=_LAST)

    def done(self, step: int, now_s: float) -> None:
        """The first one that is told of only starts the clock: whatever had to warm up is in it."""
        if self._before is not None:
            steps, seconds = step - self._before[0], now_s - self._before[1]
            if steps <= 0:
                self._paces.clear()
            elif seconds >= 0.0:
                self._paces.append(seconds / steps)
        self._before = step, now_s

    def seconds(self, steps_left: int) -> float | None:
        """None: too little was seen."""
        if len(self._paces) < _ENOUGH:
            return None
        most = median(self._paces) * (1 + len(self._paces) / 8)
        return steps_left * sum(min(pace, most) for pace in self._paces) / len(self._paces)
