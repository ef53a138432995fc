"""All teachers of a job: who of them is asked about which samples, and what their answers weigh.

Equal models are loaded and asked once. Which sample has which teacher is written in the samples, so it is the same
after any resume. What a teacher is, and where it lives, is `teacher.py`'s and the caller's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.batch import Batch
from trainer.head import Head
from trainer.job import distinct
from trainer.spec import DistillSpec
from trainer.teacher import Targets, Teacher
from trainer.wanted import TeacherFacts, Wanted


@dataclass(frozen=True)
class Answered:
    """What one teacher said about one batch, ready for the loss."""

    targets: Targets
    head: Head | None
    """Where hidden states came."""
    weight: float = 1.0
    """Share of this teacher; all shares make 1."""
    rows_M: Tensor | None = None
    """The positions it was asked about, of all N; None for all of them."""

    def to(self, device: torch.device) -> Answered:
        rows_M = None if self.rows_M is None else self.rows_M.to(device)
        return replace(self, targets=self.targets.to(device), rows_M=rows_M)


@dataclass(frozen=True)
class Faculty:
    """The distinct teachers, and for each place in `spec.teachers` which of them stands there."""

    teachers: tuple[Teacher, ...]
    places: tuple[int, ...]
    weights: tuple[float, ...]
    """Of each place; they make 1."""
    is_routed: bool = False
    """Whether each sample has its own teacher."""

    @classmethod
    def of(cls, spec: DistillSpec, models: Sequence[str], connect: Callable[[int], Teacher]) -> Faculty:
        """`models[i]` is where `spec.teachers[i]` lies; `connect(k)` gives the k-th distinct one."""
        places = distinct(spec, models)
        total = sum(teacher.weight for teacher in spec.teachers)
        weights = tuple(teacher.weight / total for teacher in spec.teachers)
        teachers = tuple(connect(index) for index in range(max(places) + 1))
        return cls(teachers, places, weights, spec.data.columns.teacher_key is not None)

    @classmethod
    def alone(cls, teacher: Teacher) -> Faculty:
        return cls((teacher,), (0,), (1.0,))

    @property
    def first(self) -> Teacher:
        """The teacher that writes labels and shows its inner values."""
        return self.teachers[self.places[0]]

    def facts(self, batch: Batch) -> list[TeacherFacts]:
        """Of each distinct teacher; `batch` holds real samples."""
        return [teacher.facts(batch) for teacher in self.teachers]

    def request(self, batch: Batch, wanted: Wanted, heads: Sequence[Head | None]) -> Callable[[], list[Answered]]:
        """Asks every teacher that is concerned; `heads` of the distinct ones. Only the first shows inner values."""
        asked = [self._ask(index, batch, wanted, head) for index, head in enumerate(heads)]
        return lambda: [answer() for answer in asked if answer is not None]

    def _ask(self, index: int, batch: Batch, wanted: Wanted, head: Head | None) -> Callable[[], Answered] | None:
        mine = [place for place, teacher in enumerate(self.places) if teacher == index]
        weight, rows_M = sum(self.weights[place] for place in mine), None
        if self.places[0] != index:
            wanted = replace(wanted, taps=())
        if self.is_routed:
            batch, rows_M = batch.taught_by(mine)
            weight = 1.0
        if (wanted.payload is None and not wanted.taps) or (self.is_routed and not batch.sample_ids):
            return None
        answer = self.teachers[index].request(batch, wanted)
        return lambda: Answered(answer(), head, weight, rows_M)
