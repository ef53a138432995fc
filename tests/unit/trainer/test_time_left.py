"""The time that is left is smooth, follows a change of speed, and is silent before there is something to say."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.time_left import TimeLeft


def after(paces, first=1):
    """One that was told of a first step, and of one more for each of these seconds."""
    told, now = TimeLeft(), 100.0
    told.done(first, now)
    for step, pace in enumerate(paces, start=first + 1):
        now += pace
        told.done(step, now)
    return told


def test_nothing_is_said_before_a_few_steps_were_seen_and_the_first_does_not_count():
    assert TimeLeft().seconds(10) is None
    assert after([1.0] * 4).seconds(10) is None
    assert after([1.0] * 5).seconds(10) == pytest.approx(10.0)


@given(st.floats(1.5, 60.0), st.integers(5, 200), st.floats(1.0, 1e6))
def test_one_slow_step_moves_it_by_an_eighth_at_most(pace, steps, stall):
    usual = after([pace] * steps).seconds(1000)
    moved = after([pace] * steps + [pace + stall]).seconds(1000)
    assert usual <= moved <= usual * 1.1251


def test_short_steps_are_judged_by_the_last_minute_and_not_by_the_last_moment():
    """Thirty a second for a minute, then two seconds of six."""
    usual = after([1 / 30] * 2000).seconds(3000)
    assert usual == pytest.approx(100.0)
    assert after([1 / 30] * 2000 + [1 / 6] * 12).seconds(3000) == pytest.approx(usual, rel=0.04)
    assert after([1 / 30] * 100).seconds(3000) is None, "less than five seconds"
    assert after([1 / 30] * 2000 + [1 / 6] * 500).seconds(3000) == pytest.approx(500.0)


def test_a_stall_between_short_steps_moves_it_by_an_eighth_at_most():
    paces = [1 / 30] * 2000
    usual = after(paces).seconds(3000)
    assert usual <= after([*paces, 300.0]).seconds(3000) <= usual * 1.1251


def test_steps_that_are_always_slow_count_in_full():
    """A checkpoint every fifth step that takes as long as five of them."""
    paces = [1.0, 1.0, 1.0, 1.0, 6.0] * 13
    assert after(paces[-64:]).seconds(100) == pytest.approx(200.0, rel=0.05)


@pytest.mark.parametrize(("every", "checkpoints"), [(20, 40), (50, 20), (200, 10)])
def test_a_cost_that_comes_back_now_and_then_is_told_in_full_and_never_all_at_once(every, checkpoints):
    """A checkpoint that takes as long as sixty steps."""
    told, now, said = TimeLeft(), 0.0, []
    for step in range(every * checkpoints + 1):
        told.done(step, now)
        said.append(told.seconds(1000))
        now += 61.0 if (step + 1) % every == 0 else 1.0
    assert said[every - 1] == pytest.approx(1000.0)
    assert 1000.0 < said[every] <= 1126.0, "the first one"
    assert all(after <= before * 1.1251 for before, after in pairwise(said[6:]))
    truth = 1000.0 * (every + 60) / every
    assert said[-1] == pytest.approx(truth, rel=0.05)
    assert said[-every // 2] == pytest.approx(truth, rel=0.05)


def test_stalls_of_long_ago_do_not_outlive_a_slower_pace_nor_one_stage_the_other():
    paces = ([1.0] * 19 + [10.0]) * 20
    assert after([*paces, *[20.0] * 64]).seconds(10) == pytest.approx(200.0)
    told = after(paces)
    for step in range(1, 10):
        told.done(step, 1e6 + step)
    assert told.seconds(10) == pytest.approx(10.0)


def test_slow_stretches_are_counted_over_the_steps_between_those_that_are_kept():
    """More of them than are kept, and then seldom."""
    assert after(([1.0] * 9 + [11.0]) * 400).seconds(100) == pytest.approx(200.0, rel=0.05)
    seldom = ([1.0] * 9 + [11.0]) * 300 + ([1.0] * 99 + [11.0]) * 300
    assert after(seldom).seconds(100) == pytest.approx(110.0, rel=0.05)


def test_a_lasting_change_of_speed_is_followed():
    assert after([1.0] * 200 + [3.0] * 64).seconds(10) == pytest.approx(30.0)


def test_what_was_learned_before_a_resume_is_no_part_of_it():
    assert after([2.0] * 6, first=900).seconds(100) == pytest.approx(200.0)


def test_steps_that_are_told_in_leaps_are_single_steps():
    told = TimeLeft()
    for step in range(0, 70, 10):
        told.done(step, float(step))
    assert told.seconds(5) == pytest.approx(5.0)


def test_a_stage_that_begins_anew_begins_anew():
    told = after([1.0] * 10)
    told.done(3, 111.0)
    assert told.seconds(10) is None


def test_a_clock_that_is_set_back_does_not_count():
    told = after([1.0] * 10)
    told.done(12, 50.0)
    assert told.seconds(10) == pytest.approx(10.0)
