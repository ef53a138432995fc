"""What teachers say about positions, in the three forms that travel, and the divergence of a student from it.

A form is opened for a block of positions (one matrix product where it is hidden states), then cut into tiles. Several
teachers are joined here. Knows no head of the student and no labels' loss: that is `losses.py`.

Shapes: N positions, M of them answered, R rows of a tile, V real tokens, K entries of a top-k answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from trainer.divergences import DIVERGENCES, Rows, Settings
from trainer.head import Head

Ensemble = Literal["sum", "averaged_logits", "select_teacher"]


@dataclass(frozen=True)
class Mix:
    """kd_ratio * T^2 * D(teacher, student at temperature T) + (1 - kd_ratio) * cross-entropy."""

    kd_ratio: float = 0.0
    temperature: float = 1.0
    divergence: str = "forward_kl"
    settings: Settings = field(default_factory=Settings)
    add_tail: bool = True
    """Of a top-k answer: all other tokens form one more bucket; else both sides are renormalised over k."""
    ensemble: Ensemble = "sum"
    """Of several teachers: weighted losses, weighted logits, or at each position the one who knows the label best."""


@dataclass(frozen=True)
class HiddenAnswer:
    """Final hidden states, and the head that makes logits of them."""

    hidden_MD: Tensor
    head: Head

    def part(self, rows: slice, num_tokens: int) -> Tensor | TopkAnswer:
        return self.head.first(num_tokens).logits_RV(self.hidden_MD[rows])


@dataclass(frozen=True)
class LogitsAnswer:
    """Logits, at least of the real tokens."""

    logits_MV: Tensor

    def part(self, rows: slice, num_tokens: int) -> Tensor | TopkAnswer:
        return self.logits_MV[rows, :num_tokens]


@dataclass(frozen=True)
class TopkAnswer:
    """The K likeliest tokens at the temperature of the loss, and what all others weigh together."""

    ids_MK: Tensor
    log_probs_MK: Tensor
    rest_M: Tensor
    """Log-probability of all other real tokens together."""

    def part(self, rows: slice, num_tokens: int) -> Tensor | TopkAnswer:  # noqa: ARG002
        return self[rows]

    def __getitem__(self, rows: slice) -> TopkAnswer:
        return TopkAnswer(self.ids_MK[rows], self.log_probs_MK[rows], self.rest_M[rows])

    def to(self, device: torch.device) -> TopkAnswer:
        return TopkAnswer(self.ids_MK.to(device), self.log_probs_MK.to(device), self.rest_M.to(device))

    @classmethod
    def cat(cls, parts: Sequence[TopkAnswer]) -> TopkAnswer:
        """Of neighbouring rows."""
        return cls(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("ids_MK", "log_probs_MK", "rest_M"))
        )


@dataclass(frozen=True)
class TeacherSide:
    """What one teacher says about the positions, or about some of them."""

    answer: HiddenAnswer | LogitsAnswer | TopkAnswer
    weight: float = 1.0
    rows_M: Tensor | None = None
    """The positions it answers, ascending, where it does not answer all."""

    def open(self, block: slice, num_tokens: int) -> Opened:
        if self.rows_M is None:
            return Opened(self.answer.part(block, num_tokens), self.weight)
        first, last = _between(self.rows_M, block)
        answer = self.answer.part(slice(first, last), num_tokens)
        return Opened(answer, self.weight, self.rows_M[first:last] - block.start)


@dataclass(frozen=True)
class Opened:
    """One teacher's answer about the rows of one block, or one tile."""

    answer: Tensor | TopkAnswer
    """Logits [R, V], or the top of them."""
    weight: float
    rows_M: Tensor | None = None

    def tile(self, tile: slice) -> Opened:
        if self.rows_M is None:
            return Opened(self.answer[tile], self.weight)
        first, last = _between(self.rows_M, tile)
        return Opened(self.answer[first:last], self.weight, self.rows_M[first:last] - tile.start)


def divergence_rows(log_q_RV: Tensor, teachers: Sequence[Opened], label_ids_R: Tensor, mix: Mix) -> Rows:
    """Value [R] and gradient [R, V] for the student's logits over temperature, teachers taken together."""
    if len(teachers) > 1 and mix.ensemble != "sum":
        teachers = [_joined(teachers, label_ids_R, mix)]
    if len(teachers) == 1 and teachers[0].rows_M is None:
        return _of_one(log_q_RV, teachers[0].answer, mix)
    value_R, gradient_RV = log_q_RV.new_zeros(len(log_q_RV)), torch.zeros_like(log_q_RV)
    for teacher in teachers:
        rows_M = torch.arange(len(log_q_RV), device=log_q_RV.device) if teacher.rows_M is None else teacher.rows_M
        value_M, gradient_MV = _of_one(log_q_RV[rows_M], teacher.answer, mix)
        value_R.index_add_(0, rows_M, value_M, alpha=teacher.weight)
        gradient_RV.index_add_(0, rows_M, gradient_MV, alpha=teacher.weight)
    return value_R, gradient_RV


def soften(logits_RV: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / T), at least in float32."""
    dtype = torch.promote_types(logits_RV.dtype, torch.float32)
    if temperature == 1.0:
        return logits_RV.log_softmax(dim=1, dtype=dtype)
    return (logits_RV.to(dtype) / temperature).log_softmax(dim=1)


def topk_answer(logits_MV: Tensor, top_k: int, temperature: float) -> TopkAnswer:
    """The short form of logits [M, V] of the real tokens."""
    log_p_MV = soften(logits_MV, temperature)
    ids_MK = log_p_MV.topk(min(top_k, log_p_MV.shape[1]), dim=1).indices
    log_p_MB, _ = _buckets(log_p_MV, ids_MK)
    return TopkAnswer(ids_MK.int(), log_p_MB[:, :-1].contiguous(), log_p_MB[:, -1].contiguous())


def _of_one(log_q_RV: Tensor, answer: Tensor | TopkAnswer, mix: Mix) -> Rows:
    diverge = DIVERGENCES[mix.divergence]
    if isinstance(answer, Tensor):
        return diverge(soften(answer, mix.temperature), log_q_RV, mix.settings)
    ids_RK = answer.ids_MK.long()
    if not mix.add_tail:
        over_k = answer.log_probs_MK.log_softmax(dim=1), log_q_RV.gather(1, ids_RK).log_softmax(dim=1)
        value_R, gradient_RK = diverge(*over_k, mix.settings)
        return value_R, torch.zeros_like(log_q_RV).scatter_(1, ids_RK, gradient_RK)
    log_p_RB = torch.cat([answer.log_probs_MK, answer.rest_M[:, None]], dim=1)
    log_q_RB, others_RV = _buckets(log_q_RV, ids_RK)
    value_R, gradient_RB = diverge(log_p_RB, log_q_RB, mix.settings)
    rest_R1 = log_q_RB[:, -1:].exp().clamp_min(torch.finfo(log_q_RB.dtype).tiny)  # as in the logarithm that it is of
    gradient_RV = others_RV.mul_(gradient_RB[:, -1:] / rest_R1)
    return value_R, gradient_RV.scatter_(1, ids_RK, gradient_RB[:, :-1])


def _buckets(log_q_RV: Tensor, ids_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of K tokens and of all others together [R, K + 1], and the others' probabilities [R, V].

    Both sides of a divergence are summed up here, so equal ones stay equal to the bit.
    """
    others_RV = log_q_RV.exp().scatter_(1, ids_RK, 0.0)
    rest_R1 = others_RV.sum(dim=1, keepdim=True).clamp_min_(torch.finfo(log_q_RV.dtype).tiny).log_()
    return torch.cat([log_q_RV.gather(1, ids_RK), rest_R1], dim=1), others_RV


def _joined(teachers: Sequence[Opened], label_ids_R: Tensor, mix: Mix) -> Opened:
    """One dense answer of several; weights are shares of their sum."""
    dense = [soften(teacher.answer, 1.0) for teacher in teachers if isinstance(teacher.answer, Tensor)]
    assert len(dense) == len(teachers), "top-k answers over different tokens cannot be joined"
    logits_TRV = torch.stack(dense)
    if mix.ensemble == "averaged_logits":
        weights = logits_TRV.new_tensor([teacher.weight for teacher in teachers])
        return Opened(torch.tensordot(weights / weights.sum(), logits_TRV, dims=1), 1.0)
    labels_TR1 = label_ids_R[None, :, None].expand(len(dense), -1, 1)
    best_R = logits_TRV.gather(2, labels_TR1)[:, :, 0].argmax(dim=0)
    return Opened(logits_TRV[best_R, torch.arange(len(best_R), device=best_R.device)], 1.0)


def _between(rows_M: Tensor, part: slice) -> tuple[int, int]:
    first, last = torch.searchsorted(rows_M, torch.tensor([part.start, part.stop], device=rows_M.device)).tolist()
    return int(first), int(last)
