"""What is minimised: objectives give named terms, and their weighted sum is the loss.

Terms are sums over positions, never means, so that micro-batches and workers add up exactly (I3). A new method is a
class here or in `matches.py`, and a line where `learn_tokens` or `match_objectives` chooses; the loop does not change.

Shapes: N learned positions, D hidden size.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from trainer.answers import HiddenAnswer, LogitsAnswer, Mix, TeacherSide
from trainer.batch import Batch
from trainer.divergences import Settings, TaidPace, TaidSettings
from trainer.faculty import Answered
from trainer.head import Head
from trainer.losses import distillation_loss
from trainer.spec import DistillSpec, FineTuneSpec
from trainer.spec import ObjectiveSpec as ObjectiveSpec


class Needs(enum.Flag):
    """What a method asks of the machinery around it."""

    NOTHING = 0
    TEACHER = enum.auto()
    WHOLE_STEP = enum.auto()
    """All samples of a step at once: one micro-batch a worker."""


@dataclass(frozen=True)
class Term:
    """A sum over learned positions. Terms of weight 0 are figures for people and carry no gradient."""

    sum: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Step:
    """What the micro-batches of one optimizer step share."""

    num_targets: int
    """Learned positions over all workers."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """What the objective remembers of the steps before."""


@dataclass(frozen=True)
class Forward:
    """What one micro-batch gave."""

    batch: Batch
    hidden_ND: Tensor
    head: Head
    inner: Mapping[str, Tensor]
    """The student's inner values by name."""
    answers: Sequence[Answered]
    step: Step
    modules: nn.ModuleDict
    """What `build` made."""


class Objective(ABC):
    """Something to learn by."""

    needs = Needs.NOTHING
    taps: tuple[str, ...] = ()
    """Inner values of the student that it reads."""

    @abstractmethod
    def terms(self, forward: Forward) -> Mapping[str, Term]:
        """What one micro-batch adds to the loss, and figures for people."""

    def build(self) -> Mapping[str, nn.Module]:
        """Modules of its own that are trained along (projections, discriminators)."""
        return {}

    def remember(self, _memory: Mapping[str, float], _terms: Mapping[str, float], _share: float) -> dict[str, float]:
        """For the next step, after one whose terms had these means; `share` (0 to 1) of all steps are over."""
        return {}


class CrossEntropy(Objective):
    """Learn the labels."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def terms(self, forward: Forward) -> Mapping[str, Term]:
        target_ids_N = forward.batch.target_ids_N
        sums = distillation_loss(forward.hidden_ND, forward.head, target_ids_N, (), Mix(), num_tokens=self._num_tokens)
        return {"cross_entropy": Term(sums.total)}


class Divergence(Objective):
    """Learn the teachers' distribution, mixed with the labels."""

    needs = Needs.TEACHER

    def __init__(self, num_tokens: int, mix: Mix, taid: TaidSettings) -> None:
        self._num_tokens = num_tokens
        self._mix = mix
        self._taid = taid

    def terms(self, forward: Forward) -> Mapping[str, Term]:
        teachers = [_side(answered) for answered in forward.answers]
        mix = replace(self._mix, settings=replace(self._mix.settings, taid_t=self._pace(forward.step.memory).t))
        target_ids_N = forward.batch.target_ids_N
        sums = distillation_loss(
            forward.hidden_ND, forward.head, target_ids_N, teachers, mix, num_tokens=self._num_tokens
        )
        return {
            "distillation": Term(sums.total),
            self._mix.divergence: Term(sums.divergence, weight=0.0),
            "cross_entropy": Term(sums.cross_entropy, weight=0.0),
        }

    def remember(self, memory: Mapping[str, float], terms: Mapping[str, float], share: float) -> dict[str, float]:
        if self._mix.divergence != "taid":
            return {}
        pace = self._pace(memory).after(terms["taid"], share, self._taid)
        return {"taid_t": pace.t, "taid_momentum": pace.momentum, "taid_loss": terms["taid"]}

    def _pace(self, memory: Mapping[str, float]) -> TaidPace:
        if "taid_t" not in memory:
            return TaidPace(self._taid.t_start)
        return TaidPace(memory["taid_t"], memory["taid_momentum"], memory["taid_loss"])


class Together(Objective):
    """Several objectives at once: their terms side by side."""

    def __init__(self, parts: Sequence[Objective]) -> None:
        self._parts = tuple(parts)
        self.needs = Needs.NOTHING
        for part in parts:
            self.needs |= part.needs
        self.taps = tuple(dict.fromkeys(name for part in parts for name in part.taps))

    def build(self) -> Mapping[str, nn.Module]:
        return {name: module for part in self._parts for name, module in part.build().items()}

    def terms(self, forward: Forward) -> Mapping[str, Term]:
        return {name: term for part in self._parts for name, term in part.terms(forward).items()}

    def remember(self, memory: Mapping[str, float], terms: Mapping[str, float], share: float) -> dict[str, float]:
        return {name: value for part in self._parts for name, value in part.remember(memory, terms, share).items()}


def learns_from_teacher(spec: FineTuneSpec | DistillSpec, role: str) -> bool:
    """The baseline, and a job without teacher, learn labels."""
    if role == "baseline" or not isinstance(spec, DistillSpec):
        return False
    return spec.objective.kd_ratio > 0.0 or bool(spec.objective.intermediate_matches)


def learn_tokens(spec: ObjectiveSpec | None, num_tokens: int) -> Objective:
    """What is learned of the tokens themselves: teachers' distribution, labels, or their mix."""
    if spec is None or spec.kd_ratio == 0.0:
        return CrossEntropy(num_tokens)
    settings = Settings(spec.beta, spec.skew_lambda, spec.adaptive_kl_alpha)
    taid = TaidSettings(spec.taid_t_start, spec.taid_t_end, spec.taid_alpha, spec.taid_beta)
    mix = Mix(spec.kd_ratio, spec.temperature, spec.divergence, settings, spec.loss_add_tail, spec.kd_loss_mode)
    return Divergence(num_tokens, mix, taid)


def combine(terms: Mapping[str, Term]) -> Tensor:
    """The weighted sum of the terms that carry a gradient."""
    weighted = [term.weight * term.sum for term in terms.values() if term.weight]
    total = weighted[0]
    for one in weighted[1:]:
        total = total + one
    return total


def _side(answered: Answered) -> TeacherSide:
    targets = answered.targets
    if targets.topk is not None:
        return TeacherSide(targets.topk, answered.weight, answered.rows_M)
    if targets.logits_NV is not None:
        return TeacherSide(LogitsAnswer(targets.logits_NV), answered.weight, answered.rows_M)
    assert targets.hidden_ND is not None
    assert answered.head is not None
    return TeacherSide(HiddenAnswer(targets.hidden_ND, answered.head), answered.weight, answered.rows_M)
