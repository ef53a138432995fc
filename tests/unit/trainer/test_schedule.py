"""The learning rate at its corners."""

from __future__ import annotations

import pytest

from trainer.schedule import learning_rate
from trainer.spec import TrainingSpec


def rates(kind: str, warmup_ratio: float, total: int = 10) -> list[float]:
    training = TrainingSpec(max_steps=total, learning_rate=1.0, lr_scheduler_type=kind, warmup_ratio=warmup_ratio)
    return [learning_rate(step, total, training) for step in range(total)]


def test_warmup_rises_to_the_peak() -> None:
    assert rates("constant", 0.4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])


def test_linear_decay_ends_one_step_before_zero() -> None:
    assert rates("linear", 0.0) == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert rates("cosine", 0.0)[5] == pytest.approx(0.5)
    assert rates("cosine", 0.2) == sorted(rates("cosine", 0.2)[:2]) + sorted(rates("cosine", 0.2)[2:], reverse=True)


@pytest.mark.parametrize("total", [1, 2])
def test_very_short_runs_have_a_learning_rate(total: int) -> None:
    assert all(rate > 0 for rate in rates("cosine", 1.0, total))
