"""Cross-entropy and forward KL straight from hidden states and the output heads, in chunks, as sums over positions.

Gradients of a chunk are made in the forward pass, so no buffer of the size positions x vocabulary ever exists.
Pure functions of tensors: no model, no batch, no workers. Means and weights over workers are the loop's.

Shapes: N positions, D hidden size, V vocabulary (real tokens only), R rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Rows x vocabulary of one chunk: about the cache of a CPU, 512 MiB of float32 on a GPU."""


@dataclass(frozen=True)
class Head:
    """Logits are hidden_ND @ weight_VD.T + bias_V; the two sides may differ in D and dtype."""

    weight_VD: Tensor
    bias_V: Tensor | None = None

    def first(self, num_tokens: int) -> Head:
        """Only the rows of real tokens: padded rows get no mass and no gradient."""
        bias_V = None if self.bias_V is None else self.bias_V[:num_tokens]
        return Head(self.weight_VD[:num_tokens], bias_V)

    def logits_RV(self, hidden_RD: Tensor) -> Tensor:
        """The product in the head's dtype, then at least float32."""
        logits_RV = _at_least_float32(hidden_RD.to(self.weight_VD.dtype) @ self.weight_VD.T)
        return logits_RV if self.bias_V is None else logits_RV + self.bias_V


@dataclass(frozen=True)
class TeacherSide:
    """What the teacher says about the same N positions."""

    hidden_ND: Tensor
    head: Head


@dataclass(frozen=True)
class Mix:
    """kd_ratio * T^2 * KL(teacher || student at temperature T) + (1 - kd_ratio) * cross-entropy."""

    kd_ratio: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class LossSums:
    """Sums over the N positions, in nats. Only `total` carries a gradient."""

    total: Tensor
    cross_entropy: Tensor
    divergence: Tensor
    """KL(teacher || student) at the temperature, without the factor T^2."""


def mixed_terms(
    student_RV: Tensor, teacher_RV: Tensor | None, target_ids_R: Tensor, mix: Mix
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums (cross-entropy, KL) of one chunk, and the gradient [R, V] of their mix for the student's logits.

    KL(teacher || student) = sum_v p_t (log p_t - log p_s), p = softmax(logits / T), Hinton et al., arXiv 1503.02531;
    its gradient times T^2 is T (p_s - p_t). The cross-entropy is at temperature 1; its gradient is p_s - onehot.
    """
    log_probs_RV = student_RV.log_softmax(dim=-1)
    cross_entropy = -log_probs_RV.gather(1, target_ids_R[:, None]).sum()
    if teacher_RV is None:
        gradient_RV = _cross_entropy_gradient(log_probs_RV, target_ids_R)
        return cross_entropy, cross_entropy.new_zeros(()), gradient_RV
    temperature = mix.temperature
    if temperature != 1.0:
        soft_RV = (student_RV / temperature).log_softmax(dim=-1)
        teacher_RV = teacher_RV / temperature
    else:
        soft_RV = log_probs_RV
    wanted_RV = teacher_RV.log_softmax(dim=-1)
    wanted_probs_RV = wanted_RV.exp()
    divergence = (wanted_RV - soft_RV).mul_(wanted_probs_RV).sum()
    gradient_RV = (soft_RV.exp() - wanted_probs_RV).mul_(mix.kd_ratio * temperature)
    if mix.kd_ratio < 1.0:
        gradient_RV += _cross_entropy_gradient(log_probs_RV, target_ids_R).mul_(1.0 - mix.kd_ratio)
    return cross_entropy, divergence, gradient_RV


def distillation_loss(
    hidden_ND: Tensor,
    head: Head,
    target_ids_N: Tensor,
    teacher: TeacherSide | None,
    mix: Mix,
    *,
    num_tokens: int,
    chunk_elements: int | None = None,
) -> LossSums:
    """Sums over N; without a teacher (or with kd_ratio 0) the cross-entropy alone.

    `num_tokens` real entries of the vocabulary take part on both sides, so padding of either head changes nothing.
    """
    if teacher is None or mix.kd_ratio == 0.0:
        teacher, mix = None, Mix()
    chunk = chunk_elements or CHUNK_ELEMENTS[hidden_ND.device.type]
    plan = _Plan(target_ids_N, teacher, mix, num_tokens, max(1, chunk // num_tokens))
    sums: tuple[Tensor, Tensor, Tensor] = _DistillationLoss.apply(hidden_ND, head.weight_VD, head.bias_V, plan)  # type: ignore[no-untyped-call]
    return LossSums(*sums)


@torch.no_grad()
def token_losses(
    hidden_ND: Tensor, head: Head, target_ids_N: Tensor, *, num_tokens: int, chunk_elements: int | None = None
) -> Tensor:
    """[N] negative log-likelihood (nats) of each target under the real entries of the vocabulary."""
    rows = max(1, (chunk_elements or CHUNK_ELEMENTS[hidden_ND.device.type]) // num_tokens)
    real = head.first(num_tokens)
    losses = [
        -real.logits_RV(hidden_ND[part]).log_softmax(dim=-1).gather(1, target_ids_N[part, None])[:, 0]
        for part in _parts(len(hidden_ND), rows)
    ]
    return torch.cat(losses) if losses else _at_least_float32(hidden_ND.new_zeros(0))


@dataclass(frozen=True)
class _Plan:
    """What the autograd function is given besides tensors that need gradients."""

    target_ids_N: Tensor
    teacher: TeacherSide | None
    mix: Mix
    num_tokens: int
    rows: int


class _Sums:
    """Running sums and gradients over the chunks; the head's gradients are summed in at least float32."""

    def __init__(self, hidden_ND: Tensor, head: Head, needed: tuple[bool, ...]) -> None:
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        self.cross_entropy = hidden_ND.new_zeros((), dtype=torch.float64)
        self.divergence = hidden_ND.new_zeros((), dtype=torch.float64)
        self.hidden_ND = torch.zeros_like(hidden_ND) if needed[0] else None
        self.weight_VD = torch.zeros_like(head.weight_VD, dtype=dtype) if needed[1] else None
        has_bias = needed[2] and head.bias_V is not None
        self.bias_V = torch.zeros_like(head.bias_V, dtype=dtype) if has_bias else None  # type: ignore[arg-type]

    def add_gradient(self, part: slice, gradient_RV: Tensor, hidden_RD: Tensor, real: Head) -> None:
        if self.bias_V is not None:
            self.bias_V[: gradient_RV.shape[1]] += gradient_RV.sum(dim=0)
        gradient_RV = gradient_RV.to(real.weight_VD.dtype)
        if self.hidden_ND is not None:
            self.hidden_ND[part] = (gradient_RV @ real.weight_VD).to(self.hidden_ND.dtype)
        if self.weight_VD is not None:
            self.weight_VD[: gradient_RV.shape[1]] += gradient_RV.T @ hidden_RD.to(real.weight_VD.dtype)


class _DistillationLoss(torch.autograd.Function):
    """(total, cross-entropy, KL); the last two are figures without gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, plan: _Plan
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = Head(weight_VD, bias_V)
        sums = _Sums(hidden_ND, head, ctx.needs_input_grad)
        real = head.first(plan.num_tokens)
        teacher_head = None if plan.teacher is None else plan.teacher.head.first(plan.num_tokens)
        for part in _parts(len(hidden_ND), plan.rows):
            teacher_RV = teacher_head.logits_RV(plan.teacher.hidden_ND[part]) if plan.teacher and teacher_head else None
            student_RV = real.logits_RV(hidden_ND[part])
            terms = mixed_terms(student_RV, teacher_RV, plan.target_ids_N[part], plan.mix)
            sums.cross_entropy += terms[0]
            sums.divergence += terms[1]
            if any(ctx.needs_input_grad):
                sums.add_gradient(part, terms[2], hidden_ND[part], real)
        ctx.sums, ctx.dtypes = sums, (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.mark_non_differentiable(sums.cross_entropy, sums.divergence)
        weight_kl = plan.mix.kd_ratio * plan.mix.temperature**2
        total = weight_kl * sums.divergence + (1.0 - plan.mix.kd_ratio) * sums.cross_entropy
        return total, sums.cross_entropy, sums.divergence

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """The gradients are scaled in place: a second backward through the same loss is refused by `del`."""
        sums, dtypes = ctx.sums, ctx.dtypes
        del ctx.sums
        found = (sums.hidden_ND, sums.weight_VD, sums.bias_V)
        scaled = [
            None if one is None else one.mul_(grads[0]).to(dtype) for one, dtype in zip(found, dtypes, strict=True)
        ]
        return scaled[0], scaled[1], scaled[2], None


def _cross_entropy_gradient(log_probs_RV: Tensor, target_ids_R: Tensor) -> Tensor:
    gradient_RV = log_probs_RV.exp()
    gradient_RV[torch.arange(len(target_ids_R), device=target_ids_R.device), target_ids_R] -= 1.0
    return gradient_RV


def _parts(count: int, rows: int) -> Iterator[slice]:
    yield from (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
