"""What a gate makes of what was observed: promotions, rollbacks, and how often either is wrong."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from cluster.canary import Kind, Observation, Outcome, figures, is_sound, judge, may_grow, num_live, observe
from cluster.store.deployment_records import Gate

GATE = Gate(error_budget=0.05)
SAME = Observation(0.3, 0.3, 0.9, 0.9, 0.01, 0.01)


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
        (replace(SAME, canary_agreement=0.2), "agrees with the teacher 70 % less often"),
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
        "live": 0,
    }


def test_a_failure_shows_nothing_but_itself():
    found = {
        figure.name: figure.observations
        for figure in figures(GATE, observe(GATE, {}, [replace(SAME, canary_failed=True)]))
    }
    assert found == {"divergence": 0, "agreement": 0, "latency": 0, "errors": 1, "live": 0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_what_is_no_number_is_not_sound(value):
    assert is_sound(SAME)
    assert not is_sound(replace(SAME, canary_divergence=value))


def live(failed: bool) -> Observation:
    return Observation(kind=Kind.LIVE, canary_failed=failed)


def test_a_canary_that_fails_its_own_users_is_rolled_back_whatever_the_mirrored_ones_say():
    verdict = told(*[SAME] * 200, *[live(failed=True)] * 20)
    assert verdict.outcome is Outcome.ROLL_BACK
    assert "fails 100 % of its own users' requests" in verdict.message


def test_its_own_users_are_not_waited_for_but_hold_up_a_promotion():
    assert told(*[SAME] * 200).outcome is Outcome.PROMOTE
    assert told(*[SAME] * 200, *[live(failed=False)] * 30).outcome is Outcome.PROMOTE
    assert told(*[SAME] * 200, *[live(failed=False)] * 8, live(failed=True)).outcome is Outcome.GO_ON


TASK = replace(GATE, task_data="/d.jsonl")


def passed(rights: list[tuple[bool, bool]], first: int = 0, size: int | None = None) -> list[Observation]:
    """(stable, canary) of each example, in the order of the pass."""
    return [
        Observation(
            kind=Kind.TASK, stable_right=one, canary_right=other, task_index=index, task_size=size or len(rights)
        )
        for index, (one, other) in enumerate(rights, start=first)
    ]


def test_with_labelled_examples_a_promotion_waits_for_them():
    assert told(*[SAME] * 200, gate=TASK).outcome is Outcome.GO_ON
    verdict = told(*[SAME] * 200, *passed([(True, True)] * 200), gate=TASK)
    assert verdict.outcome is Outcome.PROMOTE
    assert "200 labelled examples" in verdict.message


@pytest.mark.parametrize(("lost", "outcome"), [(0, Outcome.PROMOTE), (1, Outcome.PROMOTE), (2, Outcome.ROLL_BACK)])
def test_after_the_whole_pass_the_examples_have_decided(lost, outcome):
    """Twenty of them, of which 5 % may be lost: one."""
    rights = [(True, False)] * lost + [(True, True)] * (20 - lost)
    assert told(*[SAME] * 200, *passed(rights), gate=TASK).outcome is outcome


def test_a_pass_that_begins_anew_is_counted_once():
    rights = [(True, index % 3 > 0) for index in range(30)]
    evidence = observe(TASK, {}, passed(rights)[:20])
    again = observe(TASK, evidence, passed(rights))
    assert again == observe(TASK, {}, passed(rights))
    assert observe(TASK, evidence, passed(rights)[25:]) == evidence, "with a gap in between nothing is known"
    assert observe(GATE, {}, passed(rights)) == observe(GATE, {}, []), "of a gate that has none, none count"


def of_loss(num_lost: int, size: int, chance: random.Random) -> list[Observation]:
    rights = [(True, False)] * num_lost + [(True, True)] * (size - num_lost)
    chance.shuffle(rights)
    return passed(rights)


def test_a_canary_that_loses_more_examples_than_allowed_is_seldom_promoted_before_the_end_of_the_pass():
    """13 of 240 lost where 12 are allowed: over 200 shuffles, looked at after every example, with a budget of 10 %."""
    chance, gate, wrong, runs = random.Random(11), replace(TASK, error_budget=0.1), 0, 200
    clean = observe(gate, {}, [SAME] * 250)
    for _ in range(runs):
        evidence = observe(gate, clean, of_loss(13, 240, chance)[:-1])
        wrong += judge(gate, evidence, 0.0).outcome is Outcome.PROMOTE
    assert wrong <= runs * 0.1 + 3 * math.sqrt(runs * 0.1 * 0.9)


def test_a_canary_within_its_loss_is_seldom_rolled_back():
    chance, gate, wrong, runs = random.Random(12), replace(TASK, error_budget=0.1), 0, 200
    for _ in range(runs):
        evidence = observe(gate, {}, of_loss(12, 240, chance))
        wrong += judge(gate, evidence, 0.0).outcome is Outcome.ROLL_BACK
    assert wrong <= runs * 0.1 / 6 + 3 * math.sqrt(runs * 0.1 / 6)


@pytest.mark.parametrize(
    "at_limit",
    [
        lambda chance: replace(SAME, canary_divergence=0.4 + chance.uniform(-0.3, 0.3)),
        lambda chance: replace(SAME, stable_agreement=0.9, canary_agreement=0.85 + chance.uniform(-0.1, 0.1)),
        lambda chance: replace(SAME, canary_latency_s=0.02 if chance.random() < 0.5 else 0.01),
        lambda chance: SAME if chance.random() > 0.05 else replace(SAME, canary_failed=True),
    ],
    ids=["divergence", "agreement", "latency", "errors"],
)
def test_a_canary_at_one_limit_is_wrongly_promoted_within_the_budget(at_limit):
    """At the limit no promotion is right, whatever the others say: 150 runs of 250 requests."""
    chance, gate, runs = random.Random(13), replace(GATE, error_budget=0.1), 150
    seen = ([at_limit(chance) for _ in range(250)] for _ in range(runs))
    wrong = sum(judge(gate, observe(gate, {}, each), 0.0).outcome is Outcome.PROMOTE for each in seen)
    assert wrong <= runs * 0.1 + 3 * math.sqrt(runs * 0.1 * 0.9)


def test_figures_say_what_they_still_need():
    found = {each.name: each for each in figures(TASK, observe(TASK, {}, [SAME] * 200))}
    assert (found["divergence"].needed_within, found["divergence"].needed_beyond) == (20.0, 120.0)
    assert (found["divergence"].verdict, found["live"].needed_within) == ("kept", 0.0)
    assert (found["task"].verdict, found["live"].verdict) == ("nothing seen yet", "no requests of its own yet")
    slow = figures(GATE, observe(GATE, {}, [replace(SAME, canary_latency_s=1.0)]))
    assert {each.name: each.verdict for each in slow}["latency"] == "over the limit so far"


def test_a_canary_gets_more_users_when_enough_came_and_nothing_speaks_against_it():
    gate = replace(GATE, steps=(500, 2500), step_requests=10)
    good = observe(gate, {}, [SAME] * 3 + [live(failed=False)] * 10)
    assert may_grow(gate, good, 0)
    assert num_live(gate, good) == 10
    assert not may_grow(gate, good, 1)
    assert not may_grow(gate, observe(gate, good, [replace(SAME, canary_latency_s=1.0)] * 9), 0)
