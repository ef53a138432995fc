"""The tests behind a gate: how often they are wrong, however often one looks, and that they decide at all."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.canary import Bets, Observation, Outcome, figures, is_sound, judge, observe
from cluster.store.deployment_records import Gate

GATE = Gate(error_budget=0.05)
SAME = Observation(0.3, 0.3, 0.9, 0.9, 0.01, 0.01)


def peaks(limit: float, draw, num: int) -> tuple[float, float]:
    """The most capital that either gambler had at any time."""
    bets = Bets()
    for _ in range(num):
        bets = bets.see(draw(), limit)
    return math.exp(bets.peak_within), math.exp(bets.peak_beyond)


def draws(kind: str, mean: float, chance: random.Random):
    """Values in [0, 1] of this mean."""
    if kind == "coin":
        return lambda: float(chance.random() < mean)
    if kind == "narrow":
        return lambda: mean + chance.uniform(-0.02, 0.02)
    return lambda: chance.betavariate(4 * mean, 4 * (1 - mean))


@pytest.mark.parametrize("kind", ["coin", "narrow", "beta"])
@pytest.mark.parametrize("limit", [0.05, 0.5, 0.525])
def test_looked_at_after_every_value_it_is_wrong_no_more_often_than_promised(kind, limit):
    """At the limit itself neither statement is false: 300 runs of 300 looks, against a budget of 0.1."""
    chance, budget, runs = random.Random(7), 0.1, 300
    found = [peaks(limit, draws(kind, limit, chance), 300) for _ in range(runs)]
    most = runs * budget + 4 * math.sqrt(runs * budget * (1 - budget))
    assert sum(within >= 1 / budget for within, _ in found) <= most
    assert sum(beyond >= 1 / budget for _, beyond in found) <= most


@pytest.mark.parametrize(("mean", "side"), [(0.4, 0), (0.6, 1)])
def test_what_is_clearly_off_the_limit_is_found(mean, side):
    chance = random.Random(3)
    found = [peaks(0.5, draws("coin", mean, chance), 1500)[side] for _ in range(20)]
    assert sum(evidence >= 20 for evidence in found) >= 18


@given(st.lists(st.floats(0, 1), max_size=60), st.floats(0.01, 0.99))
def test_no_gambler_is_ever_ruined(values, limit):
    bets = Bets()
    for value in values:
        bets = bets.see(value, limit)
    assert math.isfinite(bets.within)
    assert math.isfinite(bets.beyond)
    assert bets.peak_within >= max(bets.within, 0.0)


def told(*seen: Observation, gate: Gate = GATE, age_s: float = 0.0):
    return judge(gate, observe(gate, {}, seen), age_s)


def test_nothing_seen_decides_nothing():
    assert told().outcome is Outcome.GO_ON


def test_a_canary_like_the_other_is_promoted_within_a_few_hundred_requests():
    assert told(*[SAME] * 200).outcome is Outcome.PROMOTE
    assert told(*[SAME] * 200, gate=replace(GATE, min_observations=500)).outcome is Outcome.GO_ON


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (replace(SAME, canary_divergence=2.5), "diverges 2 nats"),
        (replace(SAME, canary_agreement=0.2), "agrees with the teacher on 70 % fewer"),
        (replace(SAME, canary_latency_s=0.05), "takes over 1.5 times"),
        (replace(SAME, canary_failed=True), "fails 100 %"),
    ],
)
def test_garbage_is_found_out_within_dozens_and_said_in_words(bad, words):
    verdict = told(*[bad] * 40)
    assert verdict.outcome is Outcome.ROLL_BACK
    assert words in verdict.message


def test_a_small_loss_within_the_limits_is_borne():
    chance = random.Random(5)
    seen = [replace(SAME, canary_divergence=0.3 + chance.uniform(0, 0.04)) for _ in range(400)]
    assert told(*seen).outcome is Outcome.PROMOTE


def test_time_alone_never_promotes():
    assert told(*[SAME] * 5, age_s=GATE.max_duration_s + 1).outcome is Outcome.ROLL_BACK


def test_evidence_in_parts_is_evidence_as_a_whole():
    whole = observe(GATE, {}, [SAME] * 30)
    assert observe(GATE, observe(GATE, {}, [SAME] * 10), [SAME] * 20) == whole
    assert {figure.name: figure.observations for figure in figures(GATE, whole)} == {
        "divergence": 30,
        "agreement": 30,
        "latency": 30,
        "errors": 30,
    }


def test_a_failure_shows_nothing_but_itself():
    found = {
        figure.name: figure.observations
        for figure in figures(GATE, observe(GATE, {}, [replace(SAME, canary_failed=True)]))
    }
    assert found == {"divergence": 0, "agreement": 0, "latency": 0, "errors": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_what_is_no_number_is_not_sound(value):
    assert is_sound(SAME)
    assert not is_sound(replace(SAME, canary_divergence=value))
