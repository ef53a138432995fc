"""The learning rate of each step: a pure function, so that a resumed job needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.spec import TrainingSpec

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda _share: 1.0,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),
    "warmup_stable_decay": lambda share: 1.0 - share,
}
"""Factor of the peak by the share (0 to 1) of the decay that is over."""


def learning_rate(step: int, total: int, training: TrainingSpec) -> float:
    """Of step `step` (from 0) of `total`: rises linearly over the warm-up, may stay, then decays towards 0."""
    warmup = math.ceil(training.warmup_ratio * total)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    begin = _decay_begins(total, warmup, training)
    share = max(0, step - begin) / max(1, total - begin)
    return training.learning_rate * DECAYS[training.lr_scheduler_type](share)


def _decay_begins(total: int, warmup: int, training: TrainingSpec) -> int:
    """The last step at the peak: right after the warm-up, but for a schedule that stays there (arXiv 2404.06395)."""
    if training.lr_scheduler_type != "warmup_stable_decay":
        return warmup
    return max(warmup, total - math.ceil(training.decay_ratio * total))
