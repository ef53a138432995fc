"""The learning rate of each step: a pure function, so that a resumed job needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.spec import TrainingSpec

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda _share: 1.0,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),
}
"""Factor of the peak by the share (0 to 1) of the steps after the warm-up that are over."""


def learning_rate(step: int, total: int, training: TrainingSpec) -> float:
    """Of step `step` (from 0) of `total`: rises linearly over the warm-up, then decays towards 0."""
    warmup = math.ceil(training.warmup_ratio * total)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return training.learning_rate * DECAYS[training.lr_scheduler_type](share)
