"""How sure a figure is: percentile intervals by a paired bootstrap over evaluation samples.

Every figure of the report is a ratio of sums over samples, so one matrix of resampled sums serves all of them. Each
draw takes the same samples for every model: differences and ratios between models keep their pairing. Plain numpy,
seeded; the same columns and seed give the same interval. It knows no models and reads no files.

Shapes: S draws, N samples, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; either is None where the data does not define it."""

    value: float | None
    ci95: tuple[float, float] | None = None


UNDEFINED = Estimate(None)


def resampled_sums(columns_NC: Floats, *, draws: int, seed: int) -> Floats:
    """Sums of each column over N samples drawn with replacement, `draws` times over: (S, C)."""
    num_samples, num_columns = columns_NC.shape
    generator = np.random.Generator(np.random.Philox(seed))
    sums_SC = np.empty((draws, num_columns))
    chunk = max(1, _CELLS_AT_ONCE // max(1, num_samples))
    for start in range(0, draws, chunk):
        stop = min(start + chunk, draws)
        picks_SN = generator.integers(num_samples, size=(stop - start, num_samples))
        for column in range(num_columns):
            sums_SC[start:stop, column] = columns_NC[picks_SN, column].sum(axis=1)
    return sums_SC


class PairedBootstrap:
    """Sums of named columns over the same samples, as they are and resampled."""

    def __init__(self, columns: dict[str, Floats], *, draws: int, seed: int) -> None:
        """`columns`: name -> one value per sample, all in the same order of samples."""
        table_NC = np.stack([np.asarray(column, dtype=np.float64) for column in columns.values()], axis=1)
        self._index = {name: position for position, name in enumerate(columns)}
        self._num_samples = len(table_NC)
        self._sums_C = table_NC.sum(axis=0)
        self._sums_SC = resampled_sums(table_NC, draws=draws, seed=seed) if self._num_samples else table_NC

    def mean(self, name: str) -> Estimate:
        """Mean of a column over the samples."""
        return self._estimate(self._sum(name) / max(1, self._num_samples))

    def mean_difference(self, name: str, other: str) -> Estimate:
        """Mean of `name` minus mean of `other`."""
        return self._estimate((self._sum(name) - self._sum(other)) / max(1, self._num_samples))

    def ratio(self, name: str, other: str) -> Estimate:
        """Sum of `name` over sum of `other`; undefined where `other` sums to 0, in the data or in any draw."""
        return self._estimate(self._per(name, other))

    def exp_ratio(self, nll: str, tokens: str) -> Estimate:
        """exp(sum of `nll` / sum of `tokens`): the corpus perplexity."""
        return self._estimate(_exp(self._per(nll, tokens)))

    def exp_ratio_quotient(self, nll: str, tokens: str, other_nll: str, other_tokens: str) -> Estimate:
        """One corpus perplexity over another's: below 1 where the first model predicts better."""
        return self._estimate(_exp(self._per(nll, tokens) - self._per(other_nll, other_tokens)))

    def _per(self, name: str, other: str) -> Floats:
        return _divide(self._sum(name), self._sum(other))

    def _sum(self, name: str) -> Floats:
        """The sum in the data, then the sums of the draws: (1 + S,)."""
        column = self._index[name]
        return np.concatenate([self._sums_C[column : column + 1], self._sums_SC[:, column]])

    def _estimate(self, figures: Floats) -> Estimate:
        """One sample says nothing about spread, and a draw without a value leaves no honest percentile."""
        value, draws_S = figures[0], figures[1:]
        if self._num_samples == 0 or not np.isfinite(value):
            return UNDEFINED
        if self._num_samples == 1 or not np.isfinite(draws_S).all():
            return Estimate(float(value))
        low, high = np.quantile(draws_S, [0.025, 0.975])
        return Estimate(float(value), (float(low), float(high)))


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    undefined = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator != 0)


def _exp(exponent: Floats) -> Floats:
    """exp, infinite where float64 ends instead of a warning."""
    with np.errstate(over="ignore"):
        return np.exp(exponent)
