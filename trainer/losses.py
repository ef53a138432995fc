"""Cross-entropy and divergences straight from hidden states and the output head, in pieces, as sums over positions.

Gradients of a piece are made in the forward pass, so no buffer of the size positions x vocabulary ever exists: a block
of rows is one matrix product, and within it tiles of rows stay in the cache while softmax and divergence pass over
them. Pure functions of tensors: no model, no batch, no workers. Means and weights over workers are the loop's.

Shapes: N positions, D hidden size, V vocabulary (real tokens only), R rows of one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.answers import Mix, Opened, TeacherSide, divergence_rows, soften
from trainer.head import Head

_BLOCK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Rows x vocabulary of one matrix product: 16 MiB in bfloat16 on a CPU, 256 MiB on a GPU."""
_TILE_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 27}
"""Rows x vocabulary between softmax and gradient: what the caches of a CPU hold."""
_LEAST_ROWS = 64
"""Of a block, however large the vocabulary: fewer would read the head's weight more often than it is worth."""


@dataclass(frozen=True)
class Pieces:
    """How positions are cut. Changes speed and memory, never the result beyond rounding."""

    block_rows: int
    tile_rows: int

    @classmethod
    def fit(cls, device: torch.device, num_tokens: int) -> Pieces:
        block = max(_LEAST_ROWS, _BLOCK_ELEMENTS[device.type] // num_tokens)
        return cls(block, max(1, _TILE_ELEMENTS[device.type] // num_tokens))


@dataclass(frozen=True)
class LossSums:
    """Sums over the N positions, in nats. Only `total` carries a gradient."""

    total: Tensor
    cross_entropy: Tensor
    divergence: Tensor
    """At the temperature, without the factor T^2; over several teachers by their weights."""


def distillation_loss(
    hidden_ND: Tensor,
    head: Head,
    target_ids_N: Tensor,
    teachers: Sequence[TeacherSide],
    mix: Mix,
    *,
    num_tokens: int,
    pieces: Pieces | None = None,
) -> LossSums:
    """Sums over N; without teachers (or with kd_ratio 0) the cross-entropy alone.

    `num_tokens` real entries of the vocabulary take part on all sides, so padding of any head changes nothing.
    """
    if not teachers or mix.kd_ratio == 0.0:
        teachers, mix = (), Mix()
    pieces = pieces or Pieces.fit(hidden_ND.device, num_tokens)
    plan = _Plan(head, target_ids_N, tuple(teachers), mix, num_tokens, pieces)
    sums: tuple[Tensor, Tensor, Tensor] = _DistillationLoss.apply(hidden_ND, head.weight_VD, head.bias_V, plan)  # type: ignore[no-untyped-call]
    return LossSums(*sums)


def blocks(hidden_ND: Tensor, num_tokens: int) -> Iterator[slice]:
    """Rows whose logits may be there at once, at least one block."""
    yield from list(_parts(len(hidden_ND), Pieces.fit(hidden_ND.device, num_tokens).block_rows)) or [slice(0, 0)]


def label_losses(logits_RV: Tensor, label_ids_R: Tensor) -> Tensor:
    """[R] negative log-likelihood (nats) of each label."""
    return -soften(logits_RV, 1.0).gather(1, label_ids_R[:, None])[:, 0]


@dataclass(frozen=True)
class _Plan:
    """What the autograd function is given besides tensors that need gradients."""

    head: Head
    target_ids_N: Tensor
    teachers: tuple[TeacherSide, ...]
    mix: Mix
    num_tokens: int
    pieces: Pieces


class _Found:
    """Losses of the rows and gradients so far; the head's gradients are summed in at least float32."""

    def __init__(self, hidden_ND: Tensor, head: Head, needed: tuple[bool, ...]) -> None:
        self._dtype = _at_least_float32(hidden_ND.dtype)
        self.cross_entropy_N, self.divergence_N = hidden_ND.new_zeros(2, len(hidden_ND), dtype=self._dtype)
        self.hidden_ND = torch.zeros_like(hidden_ND) if needed[0] else None
        self._whole = head.weight_VD.shape if needed[1] else None
        self._weight_VD: Tensor | None = None
        has_bias = needed[2] and head.bias_V is not None
        self.bias_V = torch.zeros_like(head.bias_V, dtype=self._dtype) if has_bias else None  # type: ignore[arg-type]

    def add_gradient(self, block: slice, gradient_RV: Tensor, hidden_RD: Tensor, real: Head) -> None:
        if self.bias_V is not None:
            self.bias_V[: gradient_RV.shape[1]] += gradient_RV.sum(dim=0, dtype=self.bias_V.dtype)
        if self.hidden_ND is not None:
            self.hidden_ND[block] = (gradient_RV @ real.weight_VD).to(self.hidden_ND.dtype)
        if self._whole is not None:
            self._add_weight(gradient_RV.T @ hidden_RD.to(real.weight_VD.dtype), self._whole)

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """For hidden states, weight and bias; zero where there was no row."""
        weight_VD = self._weight_VD
        if weight_VD is None and self._whole is not None:
            weight_VD = self.cross_entropy_N.new_zeros(self._whole)
        return self.hidden_ND, weight_VD, self.bias_V

    def _add_weight(self, gradient_VD: Tensor, whole: torch.Size) -> None:
        """The first block's is copied: to fill 4 V D bytes with zeros and read them again costs as much as to add."""
        if self._weight_VD is None:
            self._weight_VD = gradient_VD.new_empty(whole, dtype=self._dtype)
            self._weight_VD[: len(gradient_VD)] = gradient_VD
            self._weight_VD[len(gradient_VD) :] = 0.0
        else:
            self._weight_VD[: len(gradient_VD)] += gradient_VD


class _DistillationLoss(torch.autograd.Function):
    """(total, cross-entropy, divergence); the last two are figures without gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, plan: _Plan
    ) -> tuple[Tensor, Tensor, Tensor]:
        found, real = _Found(hidden_ND, plan.head, ctx.needs_input_grad), plan.head.first(plan.num_tokens)
        for block in _parts(len(hidden_ND), plan.pieces.block_rows):
            student_RV = real.logits_RV(hidden_ND[block])
            teachers = [teacher.open(block, plan.num_tokens) for teacher in plan.teachers]
            label_ids_R = plan.target_ids_N[block]
            rows = found.cross_entropy_N[block], found.divergence_N[block]
            for tile in _parts(len(student_RV), plan.pieces.tile_rows):
                opened = [teacher.tile(tile) for teacher in teachers]
                rows[0][tile], rows[1][tile], gradient_RV = mixed_terms(
                    student_RV[tile], opened, label_ids_R[tile], plan.mix
                )
                student_RV[tile] = real.before_transforms(gradient_RV, student_RV[tile])  # which it takes the place of
            if any(ctx.needs_input_grad):
                found.add_gradient(block, student_RV, hidden_ND[block], real)
        ctx.found, ctx.dtypes = found, (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        cross_entropy = found.cross_entropy_N.sum(dtype=torch.float64)
        divergence = found.divergence_N.sum(dtype=torch.float64)
        ctx.mark_non_differentiable(cross_entropy, divergence)
        weight = plan.mix.kd_ratio * plan.mix.temperature**2
        return weight * divergence + (1.0 - plan.mix.kd_ratio) * cross_entropy, cross_entropy, divergence

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """The gradients are scaled in place: a second backward through the same loss is refused by `del`."""
        found, dtypes = ctx.found, ctx.dtypes
        del ctx.found
        scaled = [
            None if one is None else one.mul_(grads[0]).to(dtype)
            for one, dtype in zip(found.gradients(), dtypes, strict=True)
        ]
        return scaled[0], scaled[1], scaled[2], None


def mixed_terms(
    student_RV: Tensor, teachers: Sequence[Opened], label_ids_R: Tensor, mix: Mix
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy [R] and divergence [R] of rows of logits, and the gradient [R, V] of their mix for these logits.

    A divergence of softmax(logits / T) has 1 / T of its gradient, which T^2 makes T. The cross-entropy is at
    temperature 1; its gradient is softmax minus one-hot.
    """
    log_probs_RV = soften(student_RV, 1.0)
    cross_entropy_R = -log_probs_RV.gather(1, label_ids_R[:, None])[:, 0]
    if not teachers:
        return cross_entropy_R, torch.zeros_like(cross_entropy_R), _cross_entropy_gradient(log_probs_RV, label_ids_R)
    log_q_RV = log_probs_RV if mix.temperature == 1.0 else soften(student_RV, mix.temperature)
    value_R, gradient_RV = divergence_rows(log_q_RV, teachers, label_ids_R, mix)
    if mix.kd_ratio * mix.temperature != 1.0:
        gradient_RV.mul_(mix.kd_ratio * mix.temperature)
    if mix.kd_ratio < 1.0:
        gradient_RV.add_(_cross_entropy_gradient(log_probs_RV, label_ids_R), alpha=1.0 - mix.kd_ratio)
    return cross_entropy_R, value_R, gradient_RV


def _cross_entropy_gradient(log_probs_RV: Tensor, label_ids_R: Tensor) -> Tensor:
    gradient_RV = log_probs_RV.exp()
    gradient_RV[torch.arange(len(label_ids_R), device=label_ids_R.device), label_ids_R] -= 1.0
    return gradient_RV


def _parts(count: int, rows: int) -> Iterator[slice]:
    yield from (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
