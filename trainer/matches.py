"""Objectives of inner values: layers, attention, and relations of the first teacher that the student imitates.

Which layers go with which, what travels for it, and the projections where widths differ. How values are compared is
`imitation.py`'s.

Shapes: N learned positions, S samples, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from trainer.imitation import (
    attention_kl,
    attention_mse,
    hidden_cosine,
    hidden_mse,
    pooled,
    rkd_angle,
    rkd_distance,
    token_similarity,
)
from trainer.layers import layer_pairs
from trainer.objective import Forward, Needs, Objective, Term
from trainer.objective_spec import COMPARES_SAMPLES, LAYERED, MatchSpec
from trainer.peers import Peers
from trainer.wanted import LAST_HIDDEN, Shape

Compare = Callable[[Tensor, Tensor], Tensor]
COMPARE: dict[tuple[str, str], Compare] = {
    ("hidden", "mse"): hidden_mse,
    ("hidden", "cosine"): hidden_cosine,
    ("attention", "mse"): attention_mse,
    ("attention", "kl"): attention_kl,
    ("value_relation", "kl"): attention_kl,
}
RELATIONS: dict[str, Compare] = {"rkd_distance": rkd_distance, "rkd_angle": rkd_angle}
_TAPS = {"hidden": "hidden", "attention": "scores", "value_relation": "values"}


class Match(Objective):
    """Imitates inner values of the teacher."""

    needs = Needs.TEACHER
    teacher_taps: tuple[str, ...] = ()
    """What the teacher must send for it."""


class LayerMatch(Match):
    """The mean over layer pairs of how far the student's values are from the teacher's."""

    def __init__(self, name: str, match: MatchSpec, teacher: Shape, student: Shape, seed: int) -> None:
        self._name, self._match, self._seed = name, match, seed
        self._widths = (student.hidden_size, teacher.hidden_size)
        pairs = layer_pairs(match, teacher.num_layers, student.num_layers)
        self.teacher_taps = tuple(_tap(match.feature, layer, teacher.num_layers) for layer, _ in pairs)
        self.taps = tuple(_tap(match.feature, layer, student.num_layers) for _, layer in pairs)

    def build(self) -> Mapping[str, nn.Module]:
        """A projection to the teacher's width for each pair, where widths differ (FitNets, arXiv 1412.6550)."""
        if self._match.feature != "hidden" or self._widths[0] == self._widths[1]:
            return {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            return {self._projection(at): nn.Linear(*self._widths, bias=False) for at in range(len(self.taps))}

    def terms(self, forward: Forward) -> Mapping[str, Term]:
        compare, targets = COMPARE[self._match.feature, self._match.loss_name], forward.answers[0].targets
        total = forward.hidden_ND.new_zeros((), dtype=torch.float32)
        for at, (ours, theirs) in enumerate(zip(self.taps, self.teacher_taps, strict=True)):
            student = forward.inner[ours]
            if self._projection(at) in forward.modules:
                student = forward.modules[self._projection(at)](student)
            total = total + compare(student, targets.tap(theirs))
        return {self._name: Term(total / len(self.taps), self._match.term_weight)}

    def _projection(self, at: int) -> str:
        return f"{self._name}_projection_{at}"


class TokenSimilarityMatch(Match):
    """How the tokens of each sample resemble each other, in the final hidden states."""

    teacher_taps = (LAST_HIDDEN,)

    def __init__(self, name: str, match: MatchSpec) -> None:
        self._name, self._weight = name, match.term_weight

    def terms(self, forward: Forward) -> Mapping[str, Term]:
        teacher_ND = forward.answers[0].targets.tap(LAST_HIDDEN)
        return {
            self._name: Term(token_similarity(forward.hidden_ND, teacher_ND, forward.batch.owners_N()), self._weight)
        }


class SampleRelation(Match):
    """Relations between all samples of a step, in their mean final hidden states (RKD, arXiv 1904.05068).

    Its value is no sum over positions but one figure of the step: it is multiplied by the step's positions, by which
    the loop divides.
    """

    needs = Needs.TEACHER | Needs.WHOLE_STEP
    teacher_taps = (LAST_HIDDEN,)

    def __init__(self, name: str, match: MatchSpec, peers: Peers) -> None:
        self._name, self._match, self._peers = name, match, peers

    def terms(self, forward: Forward) -> Mapping[str, Term]:
        owners_N, count = forward.batch.owners_N(), len(forward.batch.sample_ids)
        student_SD = self._peers.gather(pooled(forward.hidden_ND, owners_N, count))
        teacher_SD = self._peers.gather(pooled(forward.answers[0].targets.tap(LAST_HIDDEN), owners_N, count))
        relation = RELATIONS[self._match.feature](student_SD, teacher_SD)
        # Every worker has the whole figure, but the gradient of its own samples alone: figures add up, gradients too.
        shared = relation - relation.detach() * (1.0 - 1.0 / self._peers.world)
        return {self._name: Term(shared * forward.step.num_targets, self._match.term_weight)}


def match_objectives(
    matches: tuple[MatchSpec, ...], teacher: Shape, student: Shape, peers: Peers, seed: int
) -> list[Match]:
    """One objective for each; UserError for layers that are not there."""
    made: list[Match] = []
    for at, match in enumerate(matches):
        name = match.feature if match.feature not in [one.feature for one in matches[:at]] else f"{match.feature}_{at}"
        if match.feature in LAYERED:
            made.append(LayerMatch(name, match, teacher, student, seed + at))
        elif match.feature in COMPARES_SAMPLES:
            made.append(SampleRelation(name, match, peers))
        else:
            made.append(TokenSimilarityMatch(name, match))
    return made


def teacher_taps(matches: list[Match]) -> tuple[str, ...]:
    """Inner values that the teacher must send."""
    return tuple(dict.fromkeys(name for match in matches for name in match.teacher_taps))


def _tap(feature: str, layer: int, num_layers: int) -> str:
    return LAST_HIDDEN if feature == "hidden" and layer == num_layers else f"{_TAPS[feature]}:{layer}"
