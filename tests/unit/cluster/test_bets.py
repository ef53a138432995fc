"""The bets behind a gate: how often they are wrong, however often one looks, and that they decide at all."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.bets import Bets


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


def drawn(values: list[float], limit: float) -> list[Bets]:
    """After each of them."""
    bets, found = Bets(), []
    for value in values:
        bets = bets.draw(value, limit, len(values))
        found.append(bets)
    return found


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_when_all_values_were_drawn_it_is_known_where_their_mean_lies(values, limit):
    last = drawn(values, limit)[-1]
    is_beyond = sum(values) > len(values) * limit + 1e-9
    certain = (last.peak_within >= 500, last.peak_beyond >= 500)
    assert certain == (not is_beyond, is_beyond)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_no_gambler_is_ruined_by_what_is_left(values, limit):
    for bets in drawn(values, limit):
        assert math.isfinite(bets.within)
        assert math.isfinite(bets.beyond)


@pytest.mark.parametrize(("num_ones", "side"), [(60, "peak_within"), (59, "peak_beyond")])
def test_of_values_in_random_order_it_is_seldom_wrong_before_the_last(num_ones, side):
    """Means at the limit (no evidence beyond is right) and a little below: 300 shuffles of 120 values, budget 0.1."""
    chance, budget, runs, wrong = random.Random(5), 0.1, 300, 0
    limit = 0.5 if side == "peak_beyond" else 0.5 - 1e-6
    for _ in range(runs):
        values = [1.0] * num_ones + [0.0] * (120 - num_ones)
        chance.shuffle(values)
        wrong += math.exp(getattr(drawn(values, limit)[-2], side)) >= 1 / budget
    assert wrong <= runs * budget + 3 * math.sqrt(runs * budget * (1 - budget))


def test_a_clear_majority_is_known_long_before_the_last():
    chance = random.Random(2)
    values = [1.0] * 50 + [0.5] * 950
    chance.shuffle(values)
    found = drawn(values, 0.55)
    assert next(at for at, bets in enumerate(found) if bets.peak_within >= math.log(20)) < 500
