"""Bets on the mean of bounded values: tests that hold however often one looks at them.

For a limit m, two gamblers bet one unit each: one against "the mean is m or more", one against "m or less". If the
statement is true, the capital of who bets against it is a non-negative supermartingale, so it ever reaches 1/a with
probability at most a (Ville). Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", arXiv
2010.09686; the stakes are their aGRAPA, also for a known number of values in random order (their section 5). Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

_BOLDNESS = 0.75
"""Of what would ruin a gambler at worst, so much is staked at most."""
_PRIOR_VARIANCE = 0.0625
_CERTAIN = 500.0
"""Log capital of who knows."""
_EXACT = 1e-9


@dataclass(frozen=True)
class Bets:
    """Both gamblers after some values in [0, 1]; capitals as logarithms, and the most each ever had."""

    num: int = 0
    total: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean as it was known before each value."""
    within: float = 0.0
    """Log capital against "the mean is at the limit or above"."""
    beyond: float = 0.0
    peak_within: float = 0.0
    peak_beyond: float = 0.0

    @property
    def mean(self) -> float:
        """Shrunk towards the middle by one value."""
        return (0.5 + self.total) / (1 + self.num)

    @property
    def variance(self) -> float:
        return (_PRIOR_VARIANCE + self.squares) / (1 + self.num)

    def see(self, value: float, limit: float) -> Bets:
        """One more value; `limit` in (0, 1). Stakes depend on the values before it alone."""
        drift = self.mean - limit
        stake = drift / (self.variance + drift * drift)
        down = min(max(-stake, 0.0), _BOLDNESS / (1 - limit))
        up = min(max(stake, 0.0), _BOLDNESS / limit)
        return self._with(
            value,
            within=self.within + math.log1p(down * (limit - value)),
            beyond=self.beyond + math.log1p(up * (value - limit)),
        )

    def draw(self, value: float, limit: float, size: int) -> Bets:
        """One more of `size` values in random order; `limit` is of the mean of just these.

        What the limit says of those that are left moves with what was drawn; after the last one both gamblers know. A
        mean at the limit keeps it.
        """
        left = size - self.num
        of_rest = (size * limit - self.total) / left
        seen = self.see(value, of_rest) if 0 < of_rest < 1 else self._with(value)
        least, most = seen.total, seen.total + left - 1
        if least > size * limit + _EXACT:
            return replace(seen, peak_beyond=_CERTAIN)
        if most < size * limit - _EXACT or left == 1:
            return replace(seen, peak_within=_CERTAIN)
        return seen

    def _with(self, value: float, *, within: float | None = None, beyond: float | None = None) -> Bets:
        within = self.within if within is None else within
        beyond = self.beyond if beyond is None else beyond
        return Bets(
            self.num + 1,
            self.total + value,
            self.squares + (value - self.mean) ** 2,
            within,
            beyond,
            max(self.peak_within, within),
            max(self.peak_beyond, beyond),
        )
