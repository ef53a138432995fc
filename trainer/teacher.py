"""The model that teaches: what it answers (`Teacher`), and one process' share of it (`TeacherModel`).

Pure compute: the same question has the same answer, whole or sharded, here or in another process.
Actors, references and restarts are the affair of `cluster/`, which wraps `TeacherModel`.

Shapes: N learned positions of a batch, D the teacher's hidden size, V rows of its head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from trainer.batch import Batch


@dataclass(frozen=True)
class Targets:
    """What the teacher says about one batch."""

    hidden_ND: Tensor | None
    """Final hidden states (after the final norm) at `batch.rows_N`, in the teacher's dtype."""


@dataclass(frozen=True)
class TeacherHead:
    """The matrix that makes logits of hidden states: sent once, not with every batch."""

    weight_VD: Tensor
    bias_V: Tensor | None


class Teacher(Protocol):
    """What the loop asks of a teacher, wherever it lives."""

    def head(self) -> TeacherHead: ...

    def request(self, batch: Batch) -> Callable[[], Targets]:
        """Starts the work; the returned function waits for the answer."""

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy completions, without the end token."""

    def score(self, batch: Batch) -> list[tuple[float, int]]:
        """For each of `batch.sample_ids`: summed negative log-likelihood (nats) and number of learned tokens."""
