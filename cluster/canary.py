"""Whether a canary is good enough: each limit of its gate is a bet (bets.py) on what was observed of it.

Observed are mirrored requests, requests of its own users, and labelled examples. Pure; stores nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from cluster.bets import Bets
from cluster.store.deployment_records import Gate, Json

_MOST_LOG = 500.0
_NATS = 2.0
"""Differences of divergences count up to so much."""
ERRORS, LIVE, TASK = "errors", "live", "task"


class Kind(StrEnum):
    """The names of `athanor.v1.ObservationKind` without the prefix."""

    MIRRORED = "MIRRORED"
    LIVE = "LIVE"
    TASK = "TASK"


@dataclass(frozen=True)
class Observation:
    """What one request or example has shown, as in `athanor.v1.Observation`."""

    stable_divergence: float = 0.0
    canary_divergence: float = 0.0
    stable_agreement: float = 0.0
    canary_agreement: float = 0.0
    stable_latency_s: float = 0.0
    canary_latency_s: float = 0.0
    canary_failed: bool = False
    kind: Kind = Kind.MIRRORED
    stable_right: bool = False
    canary_right: bool = False
    task_index: int = 0
    task_size: int = 0


@dataclass(frozen=True)
class Figure:
    """One limit, and the evidence so far; evidence is the most capital that a gambler ever had."""

    name: str
    observations: int
    mean: float
    limit: float
    evidence_within: float
    evidence_beyond: float
    needed_within: float
    """0: no evidence is waited for."""
    needed_beyond: float
    verdict: str = ""

    @property
    def is_broken(self) -> bool:
        return self.evidence_beyond >= self.needed_beyond

    @property
    def is_kept(self) -> bool:
        """Shown to be kept; where nothing needs to be shown, that what was seen is not over the limit."""
        if self.needed_within:
            return self.evidence_within >= self.needed_within
        return not self.seems_beyond

    @property
    def seems_beyond(self) -> bool:
        return self.observations > 0 and self.mean > self.limit


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
    waits: bool = True
    """A promotion waits for evidence that it is kept."""

    @property
    def scaled(self) -> float:
        return (self.limit - self.low) / self.span

    def scale(self, value: float) -> float:
        return min(max((value - self.low) / self.span, 0.0), 1.0)


def _criteria(gate: Gate) -> dict[str, _Criterion]:
    """Of the latency the median of the ratios is tested: it may be over the limit half of the time.

    Its own users' requests can end a canary, and hold up its promotion; where it has no users, none are waited for.
    """
    found = {
        "divergence": _Criterion(min(gate.max_divergence_increase, _NATS * 0.99), -_NATS, 2 * _NATS),
        "agreement": _Criterion(gate.max_agreement_loss, -1.0, 2.0),
        "latency": _Criterion(0.5, 0.0, 1.0),
        ERRORS: _Criterion(gate.max_error_rate, 0.0, 1.0),
        LIVE: _Criterion(gate.max_error_rate, 0.0, 1.0, waits=False),
    }
    return found | ({TASK: _Criterion(gate.max_task_loss, -1.0, 2.0)} if gate.task_data else {})


def _values(gate: Gate, seen: Observation) -> dict[str, float]:
    """A canary that failed has shown nothing else."""
    if seen.kind is Kind.LIVE:
        return {LIVE: float(seen.canary_failed)}
    if seen.canary_failed:
        return {ERRORS: 1.0}
    return {
        "divergence": seen.canary_divergence - seen.stable_divergence,
        "agreement": seen.stable_agreement - seen.canary_agreement,
        "latency": float(seen.canary_latency_s > gate.max_latency_ratio * seen.stable_latency_s),
        ERRORS: 0.0,
    }


def is_sound(seen: Observation) -> bool:
    """Whether its numbers are numbers. A canary whose scores are not has failed; judges say so by `canary_failed`."""
    numbers = [value for value in asdict(seen).values() if isinstance(value, int | float)]
    return all(math.isfinite(value) and value >= 0 for value in numbers)


def observe(gate: Gate, evidence: Json, seen: Sequence[Observation]) -> dict[str, Any]:
    """The evidence with more observations, in their order."""
    bets = _read(gate, evidence)
    criteria = _criteria(gate)
    for each in seen:
        if each.kind is Kind.TASK:
            bets |= _examined(bets, criteria, each)
            continue
        for name, value in _values(gate, each).items():
            criterion = criteria[name]
            bets[name] = bets[name].see(criterion.scale(value), criterion.scaled)
    return {name: asdict(each) for name, each in bets.items()}


def _examined(bets: Mapping[str, Bets], criteria: Mapping[str, _Criterion], seen: Observation) -> dict[str, Bets]:
    """A judge that was replaced begins its pass anew: what was counted is not counted again."""
    criterion = criteria.get(TASK)
    if criterion is None or seen.task_index != bets[TASK].num or seen.task_index >= seen.task_size:
        return {}
    loss = float(seen.stable_right) - float(seen.canary_right)
    return {TASK: bets[TASK].draw(criterion.scale(loss), criterion.scaled, seen.task_size)}


def _read(gate: Gate, evidence: Json) -> dict[str, Bets]:
    return {name: Bets(**evidence[name]) if name in evidence else Bets() for name in _criteria(gate)}


def figures(gate: Gate, evidence: Json) -> tuple[Figure, ...]:
    """Each limit in its own unit."""
    return tuple(_figures(gate, evidence))


def _figures(gate: Gate, evidence: Json) -> Iterator[Figure]:
    bets, criteria = _read(gate, evidence), _criteria(gate)
    for name, criterion in criteria.items():
        of_it = bets[name]
        mean = criterion.low + criterion.span * (of_it.total / of_it.num) if of_it.num else 0.0
        within, beyond = (math.exp(min(peak, _MOST_LOG)) for peak in (of_it.peak_within, of_it.peak_beyond))
        needed_within = 1 / gate.error_budget if criterion.waits else 0.0
        needs = (needed_within, len(criteria) / gate.error_budget)
        found = Figure(name, of_it.num, mean, criterion.limit, within, beyond, *needs)
        yield Figure(**(asdict(found) | {"verdict": _standing(found)}))


def _standing(figure: Figure) -> str:
    if figure.is_broken:
        return "broken"
    if figure.needed_within and figure.is_kept:
        return "kept"
    if not figure.observations:
        return "nothing seen yet" if figure.needed_within else "no requests of its own yet"
    if figure.seems_beyond:
        return "over the limit so far"
    return "within the limit so far"


def judge(gate: Gate, evidence: Json, age_s: float) -> Verdict:
    """What follows from the evidence. All limits must be kept for a promotion; one that is broken ends the canary.

    Each promotion is wrong with probability at most `error_budget` (an intersection-union test needs no correction),
    each rollback likewise (each of the limits has its share of it).
    """
    found = figures(gate, evidence)
    seen = _in_words(found)
    if beyond := [each for each in found if each.is_broken]:
        worst = max(beyond, key=lambda each: each.evidence_beyond / each.needed_beyond)
        return Verdict(Outcome.ROLL_BACK, _words(gate, worst), found)
    open_ = [each.name for each in found if not each.is_kept]
    if not open_ and _num(found, ERRORS) >= gate.min_observations:
        return Verdict(Outcome.PROMOTE, f"all limits kept on {seen}", found)
    if age_s > gate.max_duration_s:
        names = ", ".join(open_) or "too few requests"
        return Verdict(Outcome.ROLL_BACK, f"undecided after {age_s:.0f} s and {seen}: {names}", found)
    return Verdict(Outcome.GO_ON, f"{seen} compared", found)


def may_grow(gate: Gate, evidence: Json, num_live_before: int) -> bool:
    """Whether a canary may get more users: enough of them since the last step, and no limit that seems broken."""
    found = figures(gate, evidence)
    enough = _num(found, LIVE) - num_live_before >= gate.step_requests
    return enough and not any(each.seems_beyond for each in found)


def num_live(gate: Gate, evidence: Json) -> int:
    """Requests of its own users so far."""
    return _num(figures(gate, evidence), LIVE)


def _num(found: Sequence[Figure], name: str) -> int:
    return next((each.observations for each in found if each.name == name), 0)


def _in_words(found: Sequence[Figure]) -> str:
    """What was seen so far."""
    words = [f"{_num(found, ERRORS)} mirrored requests"]
    if live := _num(found, LIVE):
        words.append(f"{live} of its own users")
    if examples := _num(found, TASK):
        words.append(f"{examples} labelled examples")
    return ", ".join(words)


def _words(gate: Gate, figure: Figure) -> str:
    mean, limit = figure.mean, figure.limit
    words = {
        "divergence": f"diverges {mean:.3g} nats more from the teacher, where {limit:g} are allowed",
        "agreement": f"agrees with the teacher {100 * mean:.3g} % less often, where {100 * limit:g} % are allowed",
        "latency": f"takes over {gate.max_latency_ratio:g} times as long for {100 * mean:.3g} % of requests",
        ERRORS: f"fails {100 * mean:.3g} % of mirrored requests, where {100 * limit:g} % are allowed",
        LIVE: f"fails {100 * mean:.3g} % of its own users' requests, where {100 * limit:g} % are allowed",
        TASK: f"has {100 * mean:.3g} % fewer of the labelled examples right, where {100 * limit:g} % are allowed",
    }
    return f"{words[figure.name]} ({figure.observations} compared)"
