"""Whether a canary is good enough, from what mirrored requests have shown: bets, whose tests hold whenever looked at.

For a limit m on the mean of bounded values, two gamblers bet one unit each: one against "the mean is m or more", one
against "m or less". If the statement is true, the capital of who bets against it is a non-negative supermartingale, so
it ever reaches 1/a with probability at most a (Ville). Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting", arXiv 2010.09686; the stakes are their aGRAPA. Pure; stores nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from cluster.store.deployment_records import Gate, Json

_BOLDNESS = 0.75
"""Of what would ruin a gambler at worst, so much is staked at most."""
_PRIOR_VARIANCE = 0.0625
_MOST_LOG = 500.0
_NATS = 2.0
"""Differences of divergences count up to so much."""
_WORST = "errors"


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
        within = self.within + math.log1p(down * (limit - value))
        beyond = self.beyond + math.log1p(up * (value - limit))
        return Bets(
            self.num + 1,
            self.total + value,
            self.squares + (value - self.mean) ** 2,
            within,
            beyond,
            max(self.peak_within, within),
            max(self.peak_beyond, beyond),
        )


@dataclass(frozen=True)
class Observation:
    """What one mirrored request has shown, as in `athanor.v1.Observation`."""

    stable_divergence: float = 0.0
    canary_divergence: float = 0.0
    stable_agreement: float = 0.0
    canary_agreement: float = 0.0
    stable_latency_s: float = 0.0
    canary_latency_s: float = 0.0
    canary_failed: bool = False


@dataclass(frozen=True)
class Figure:
    """One limit, and the evidence so far; evidence is the most capital that a gambler ever had."""

    name: str
    observations: int
    mean: float
    limit: float
    evidence_within: float
    evidence_beyond: float


class Outcome(StrEnum):
    """What follows for the canary."""

    GO_ON = "GO_ON"
    PROMOTE = "PROMOTE"
    ROLL_BACK = "ROLL_BACK"


@dataclass(frozen=True)
class Verdict:
    """What follows, and why in one sentence."""

    outcome: Outcome
    message: str
    figures: tuple[Figure, ...] = ()

    def document(self) -> dict[str, Any]:
        return {"figures": [asdict(figure) for figure in self.figures]}


@dataclass(frozen=True)
class _Criterion:
    """One limit as a test of a mean in [0, 1], and the way back to its unit: value = low + x * span."""

    limit: float
    low: float
    span: float

    @property
    def scaled(self) -> float:
        return (self.limit - self.low) / self.span

    def scale(self, value: float) -> float:
        return min(max((value - self.low) / self.span, 0.0), 1.0)


def _criteria(gate: Gate) -> dict[str, _Criterion]:
    """Of the latency the median of the ratios is tested: it may be over the limit half of the time."""
    return {
        "divergence": _Criterion(min(gate.max_divergence_increase, _NATS * 0.99), -_NATS, 2 * _NATS),
        "agreement": _Criterion(gate.max_agreement_loss, -1.0, 2.0),
        "latency": _Criterion(0.5, 0.0, 1.0),
        _WORST: _Criterion(gate.max_error_rate, 0.0, 1.0),
    }


def _values(gate: Gate, seen: Observation) -> dict[str, float]:
    """A canary that failed has shown nothing else."""
    if seen.canary_failed:
        return {_WORST: 1.0}
    return {
        "divergence": seen.canary_divergence - seen.stable_divergence,
        "agreement": seen.stable_agreement - seen.canary_agreement,
        "latency": float(seen.canary_latency_s > gate.max_latency_ratio * seen.stable_latency_s),
        _WORST: 0.0,
    }


def is_sound(seen: Observation) -> bool:
    """Whether its numbers are numbers. A canary whose scores are not has failed; judges say so by `canary_failed`."""
    return all(math.isfinite(value) and value >= 0 for value in asdict(seen).values())


def observe(gate: Gate, evidence: Json, seen: Sequence[Observation]) -> dict[str, Any]:
    """The evidence with more observations, in their order."""
    bets = _read(gate, evidence)
    criteria = _criteria(gate)
    for each in seen:
        for name, value in _values(gate, each).items():
            criterion = criteria[name]
            bets[name] = bets[name].see(criterion.scale(value), criterion.scaled)
    return {name: asdict(each) for name, each in bets.items()}


def _read(gate: Gate, evidence: Json) -> dict[str, Bets]:
    return {name: Bets(**evidence[name]) if name in evidence else Bets() for name in _criteria(gate)}


def figures(gate: Gate, evidence: Json) -> tuple[Figure, ...]:
    """Each limit in its own unit."""
    bets = _read(gate, evidence)
    return tuple(_figure(name, criterion, bets[name]) for name, criterion in _criteria(gate).items())


def _figure(name: str, criterion: _Criterion, bets: Bets) -> Figure:
    mean = criterion.low + criterion.span * (bets.total / bets.num) if bets.num else 0.0
    within, beyond = (math.exp(min(peak, _MOST_LOG)) for peak in (bets.peak_within, bets.peak_beyond))
    return Figure(name, bets.num, mean, criterion.limit, within, beyond)


def judge(gate: Gate, evidence: Json, age_s: float) -> Verdict:
    """What follows from the evidence. All limits must be kept for a promotion; one that is broken ends the canary.

    Each promotion is wrong with probability at most `error_budget` (an intersection-union test needs no correction),
    each rollback likewise (each of the limits has its share of it).
    """
    found = figures(gate, evidence)
    beyond = [each for each in found if each.evidence_beyond >= len(found) / gate.error_budget]
    if beyond:
        worst = max(beyond, key=lambda each: each.evidence_beyond)
        return Verdict(Outcome.ROLL_BACK, _words(gate, worst), found)
    open_ = [each for each in found if each.evidence_within < 1 / gate.error_budget]
    num = max(each.observations for each in found)
    if not open_ and num >= gate.min_observations:
        return Verdict(Outcome.PROMOTE, f"all limits kept on {num} mirrored requests", found)
    if age_s > gate.max_duration_s:
        names = ", ".join(each.name for each in open_) or "too few requests"
        return Verdict(Outcome.ROLL_BACK, f"undecided after {age_s:.0f} s and {num} mirrored requests: {names}", found)
    return Verdict(Outcome.GO_ON, f"{num} mirrored requests compared", found)


def _words(gate: Gate, figure: Figure) -> str:
    mean, limit = figure.mean, figure.limit
    words = {
        "divergence": f"diverges {mean:.3g} nats per token more from the teacher, where {limit:g} are allowed",
        "agreement": f"agrees with the teacher on {100 * mean:.3g} % fewer tokens, where {100 * limit:g} % are allowed",
        "latency": f"takes over {gate.max_latency_ratio:g} times as long for {100 * mean:.3g} % of requests",
        _WORST: f"fails {100 * mean:.3g} % of requests, where {100 * limit:g} % are allowed",
    }
    return f"{words[figure.name]} ({figure.observations} compared)"
