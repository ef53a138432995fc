"""The learning rate at its corners."""

from __future__ import annotations

import pytest

from trainer.schedule import learning_rate
from trainer.spec import TrainingSpec


def rates(kind: str, warmup_ratio: float, total: int = 10, decay_ratio: float = 0.1) -> list[float]:
    settings = {"lr_scheduler_type": kind, "warmup_ratio": warmup_ratio, "decay_ratio": decay_ratio}
    training = TrainingSpec.model_validate({"max_steps": total, "learning_rate": 1.0, **settings})
    return [learning_rate(step, total, training) for step in range(total)]


def test_warmup_rises_to_the_peak() -> None:
    assert rates("constant", 0.4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])


def test_linear_decay_ends_one_step_before_zero() -> None:
    assert rates("linear", 0.0) == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert rates("cosine", 0.0)[5] == pytest.approx(0.5)
    assert rates("cosine", 0.2) == sorted(rates("cosine", 0.2)[:2]) + sorted(rates("cosine", 0.2)[2:], reverse=True)


def test_warmup_stable_decay_rises_stays_and_falls() -> None:
    expected = [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert rates("warmup_stable_decay", 0.2, decay_ratio=0.4) == pytest.approx(expected)


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.3, 1.0])
def test_warmup_stable_decay_lies_between_linear_and_constant(warmup_ratio: float) -> None:
    kind = "warmup_stable_decay"
    assert rates(kind, warmup_ratio, decay_ratio=1 - warmup_ratio) == rates("linear", warmup_ratio)
    assert rates(kind, warmup_ratio, decay_ratio=0.0) == rates("constant", warmup_ratio)


def test_a_warmup_and_a_decay_that_meet_leave_the_peak_to_the_warmup() -> None:
    """Both are rounded up to whole steps, so that they may be one more than there are."""
    assert rates("warmup_stable_decay", 0.5, total=5, decay_ratio=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.5])


@pytest.mark.parametrize("total", [1, 2])
def test_very_short_runs_have_a_learning_rate(total: int) -> None:
    assert all(rate > 0 for rate in rates("cosine", 1.0, total))
    assert all(rate > 0 for rate in rates("warmup_stable_decay", 0.5, total, decay_ratio=0.5))
