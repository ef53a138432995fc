"""Intervals: known cases, the pairing, the seed, and what is left undefined."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.bootstrap import PairedBootstrap, resampled_sums


def bootstrap(draws=1000, seed=7, **columns):
    return PairedBootstrap(
        {name: np.asarray(column, dtype=float) for name, column in columns.items()}, draws=draws, seed=seed
    )


def test_the_mean_and_its_interval_agree_with_the_normal_approximation():
    generator = np.random.default_rng(0)
    right = (generator.random(2000) < 0.8).astype(float)
    estimate = bootstrap(draws=4000, right=right).mean("right")
    spread = 1.96 * right.std() / math.sqrt(len(right))
    assert estimate.value == right.mean()
    assert estimate.ci95 == pytest.approx((right.mean() - spread, right.mean() + spread), abs=0.002)


def test_every_model_is_drawn_the_same_samples():
    right = np.random.default_rng(0).integers(2, size=300).astype(float)
    paired = bootstrap(one=right, other=right, better=right + 1)
    assert paired.mean_difference("one", "other").ci95 == (0.0, 0.0)
    assert paired.mean_difference("better", "one").ci95 == pytest.approx((1.0, 1.0))
    assert paired.ratio("one", "other").ci95 == (1.0, 1.0)


def test_the_seed_decides_the_draws():
    right = np.random.default_rng(0).integers(2, size=50).astype(float)
    same, again, other = (bootstrap(seed=seed, right=right).mean("right") for seed in (1, 1, 2))
    assert same == again
    assert same.ci95 != other.ci95


def test_drawing_in_chunks_changes_nothing(monkeypatch):
    columns_NC = np.random.default_rng(0).random((37, 3))
    whole = resampled_sums(columns_NC, draws=200, seed=3)
    monkeypatch.setattr("trainer.bootstrap._CELLS_AT_ONCE", 37 * 11)
    np.testing.assert_array_equal(resampled_sums(columns_NC, draws=200, seed=3), whole)


def test_perplexity_is_of_the_corpus_not_a_mean_over_samples():
    estimate = bootstrap(nll=[1.0, 30.0], tokens=[1, 10]).exp_ratio("nll", "tokens")
    assert estimate.value == pytest.approx(math.exp(31 / 11))


def test_one_perplexity_over_another():
    paired = bootstrap(nll=[2.0, 4.0, 6.0], less=[1.0, 2.0, 3.0], tokens=[1, 2, 3])
    estimate = paired.exp_ratio_quotient("less", "tokens", "nll", "tokens")
    assert estimate.value == pytest.approx(math.exp(-1))
    assert estimate.ci95 == pytest.approx((math.exp(-1), math.exp(-1)))


def test_one_sample_has_a_value_and_no_interval():
    estimate = bootstrap(right=[1.0]).mean("right")
    assert estimate.value == 1.0
    assert estimate.ci95 is None


def test_no_sample_has_neither():
    paired = bootstrap(right=[], other=[])
    assert paired.mean("right").value is None
    assert paired.ratio("right", "other").value is None


def test_a_ratio_over_nothing_is_undefined():
    estimate = bootstrap(student=[1.0, 0.0], teacher=[0.0, 0.0]).ratio("student", "teacher")
    assert estimate.value is None
    assert estimate.ci95 is None


def test_a_ratio_that_some_draws_leave_undefined_has_no_interval():
    estimate = bootstrap(student=[1.0, 1.0, 0.0], teacher=[1.0, 0.0, 0.0]).ratio("student", "teacher")
    assert estimate.value == 2.0
    assert estimate.ci95 is None


def test_a_perplexity_beyond_numbers_is_undefined():
    assert bootstrap(nll=[1e6, 1e6], tokens=[1, 1]).exp_ratio("nll", "tokens").value is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40), st.integers(0, 1000))
def test_intervals_are_ordered_and_within_bounds(pairs, seed):
    student, baseline = zip(*pairs, strict=True)
    paired = bootstrap(draws=100, seed=seed, student=student, baseline=baseline)
    low, high = paired.mean("student").ci95
    assert 0 <= low <= high <= 1
    low, high = paired.mean_difference("student", "baseline").ci95
    assert -1 <= low <= high <= 1


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap(draws=400, seed=trial, right=generator.random(200) < 0.7).mean("right").ci95
        covered += low <= 0.7 <= high
    assert 0.89 <= covered / 200 <= 0.99
