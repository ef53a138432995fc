"""What is minimised: an objective says what it needs and gives named terms; a combiner makes one loss of them.

Terms are sums over positions, never means, so that micro-batches and workers add up exactly (I3).
A new method is a class here and an entry in `OBJECTIVES`; the loop does not change.

Shapes: N learned positions, D hidden size.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from trainer.batch import Batch
from trainer.losses import Head, Mix, TeacherSide, distillation_loss
from trainer.spec import DistillSpec, FineTuneSpec
from trainer.teacher import Targets


class Needs(enum.Flag):
    """What a method asks of the machinery around it."""

    NOTHING = 0
    TEACHER = enum.auto()


@dataclass(frozen=True)
class Term:
    """A sum over learned positions. Terms of weight 0 are figures for people and carry no gradient."""

    sum: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Forward:
    """What one micro-batch gave."""

    batch: Batch
    hidden_ND: Tensor
    head: Head
    targets: Targets | None
    teacher_head: Head | None


class Objective(Protocol):
    needs: Needs

    def build(self) -> nn.ModuleDict:
        """Modules of its own that are trained along (projectors, discriminators)."""

    def terms(self, forward: Forward) -> Mapping[str, Term]: ...


class CrossEntropy:
    """Learn the labels."""

    needs = Needs.NOTHING

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def build(self) -> nn.ModuleDict:
        return nn.ModuleDict()

    def terms(self, forward: Forward) -> Mapping[str, Term]:
        target_ids_N = forward.batch.target_ids_N
        sums = distillation_loss(
            forward.hidden_ND, forward.head, target_ids_N, None, Mix(), num_tokens=self._num_tokens
        )
        return {"cross_entropy": Term(sums.total)}


class Divergence:
    """Learn the teacher's distribution, mixed with the labels."""

    needs = Needs.TEACHER

    def __init__(self, num_tokens: int, mix: Mix) -> None:
        self._num_tokens = num_tokens
        self._mix = mix

    def build(self) -> nn.ModuleDict:
        return nn.ModuleDict()

    def terms(self, forward: Forward) -> Mapping[str, Term]:
        assert forward.targets is not None
        assert forward.targets.hidden_ND is not None
        assert forward.teacher_head is not None
        teacher = TeacherSide(forward.targets.hidden_ND, forward.teacher_head)
        target_ids_N = forward.batch.target_ids_N
        sums = distillation_loss(
            forward.hidden_ND, forward.head, target_ids_N, teacher, self._mix, num_tokens=self._num_tokens
        )
        return {
            "distillation": Term(sums.total),
            "forward_kl": Term(sums.divergence, weight=0.0),
            "cross_entropy": Term(sums.cross_entropy, weight=0.0),
        }


@dataclass(frozen=True)
class Plan:
    """Which objective a learner follows, decided before anything is loaded."""

    name: str
    needs: Needs
    mix: Mix = field(default_factory=Mix)

    @property
    def needs_teacher(self) -> bool:
        return Needs.TEACHER in self.needs

    def objective(self, num_tokens: int) -> Objective:
        """`num_tokens`: real entries of the vocabulary."""
        return OBJECTIVES[self.name](num_tokens, self.mix)


OBJECTIVES: dict[str, Callable[[int, Mix], Objective]] = {
    "cross_entropy": lambda num_tokens, _mix: CrossEntropy(num_tokens),
    "divergence": Divergence,
}


def plan(spec: FineTuneSpec | DistillSpec, role: str = "student") -> Plan:
    """The baseline, and a job without teacher, learn labels."""
    if role == "baseline" or not isinstance(spec, DistillSpec) or spec.objective.kd_ratio == 0.0:
        return Plan("cross_entropy", CrossEntropy.needs)
    mix = Mix(spec.objective.kd_ratio, spec.objective.temperature)
    return Plan("divergence", Divergence.needs, mix)


def combine(terms: Mapping[str, Term]) -> Tensor:
    """The weighted sum of the terms that carry a gradient."""
    weighted = [term.weight * term.sum for term in terms.values() if term.weight]
    total = weighted[0]
    for one in weighted[1:]:
        total = total + one
    return total
