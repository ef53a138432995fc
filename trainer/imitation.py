"""How inner values of two models are compared: hidden states, attention, relations between tokens and between samples.

Pure functions of tensors of the same positions, differentiable by autograd, as sums over positions (or over samples,
where samples are compared), so that padding and packing change nothing. Which values are compared with what weight is
the objective's.

Shapes: N positions, D hidden size (of either side), H heads, T positions of a row, S samples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

_SAME = 1e-5
"""Share of a squared length: such a difference is rounding, of states that came in bfloat16."""


def hidden_mse(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Sum over positions of the mean squared difference, FitNets, arXiv 1412.6550; widths must be equal."""
    return (student_ND.float() - teacher_ND.float()).square().mean(dim=1).sum()


def hidden_cosine(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Sum over positions of 1 - cosine, as DistilBERT's, arXiv 1910.01108; widths must be equal."""
    return (1.0 - F.cosine_similarity(student_ND.float(), teacher_ND.float(), dim=1)).sum()


def attention_mse(student_NHT: Tensor, teacher_NHT: Tensor) -> Tensor:
    """Sum over positions of the mean squared difference of attention scores, TinyBERT, arXiv 1909.10351.

    The mean is over heads and over the positions that may be looked at; masked ones (-inf) are none.
    """
    student_NHT, teacher_NHT = _same_heads(student_NHT.float(), teacher_NHT.float())
    hidden_NHT = torch.isinf(teacher_NHT)
    apart_NHT = (student_NHT.masked_fill(hidden_NHT, 0.0) - teacher_NHT.masked_fill(hidden_NHT, 0.0)).square()
    seen_N = (~hidden_NHT).sum(dim=(1, 2)).clamp_min(1)
    return (apart_NHT.sum(dim=(1, 2)) / seen_N).sum()


def attention_kl(student_NHT: Tensor, teacher_NHT: Tensor) -> Tensor:
    """Sum over positions of the mean over heads of KL(teacher || student) of what they look at.

    MiniLM, arXiv 2002.10957. Both are scores; where the numbers of heads differ, probabilities are averaged over heads.
    """
    student_NHT, teacher_NHT = student_NHT.float().softmax(dim=2), teacher_NHT.float().softmax(dim=2)
    student_NHT, teacher_NHT = _same_heads(student_NHT, teacher_NHT)
    tiny = torch.finfo(torch.float32).tiny
    apart_NHT = teacher_NHT * (teacher_NHT.clamp_min(tiny).log() - student_NHT.clamp_min(tiny).log())
    return apart_NHT.sum(dim=2).mean(dim=1).sum()


def token_similarity(student_ND: Tensor, teacher_ND: Tensor, owners_N: Tensor) -> Tensor:
    """Sum over positions of the mean squared difference of cosines with all learned positions of the same sample.

    Similarity-preserving distillation, arXiv 1907.09682, between tokens. `owners_N` ascends.
    """
    student_ND, teacher_ND = F.normalize(student_ND.float(), dim=1), F.normalize(teacher_ND.float(), dim=1)
    total = student_ND.new_zeros(())
    for size in _runs(owners_N):
        student_nD, student_ND = student_ND[:size], student_ND[size:]
        teacher_nD, teacher_ND = teacher_ND[:size], teacher_ND[size:]
        total = total + (student_nD @ student_nD.T - teacher_nD @ teacher_nD.T).square().mean(dim=1).sum()
    return total


def pooled(hidden_ND: Tensor, owners_N: Tensor, num_samples: int) -> Tensor:
    """[S, D]: the mean over the learned positions of each sample; samples without any are left out."""
    sums_SD = hidden_ND.new_zeros((num_samples, hidden_ND.shape[1]), dtype=torch.float32)
    sums_SD = sums_SD.index_add(0, owners_N, hidden_ND.float())
    counts_S = torch.bincount(owners_N, minlength=num_samples)
    return sums_SD[counts_S > 0] / counts_S[counts_S > 0, None]


def rkd_distance(student_SD: Tensor, teacher_SD: Tensor) -> Tensor:
    """Mean over pairs of the Huber loss of distances, each in units of their mean, RKD, arXiv 1904.05068.

    Pairs of a sample with itself count, as in the authors' own code.
    """
    return F.smooth_l1_loss(_relative_distances(student_SD), _relative_distances(teacher_SD))


def rkd_angle(student_SD: Tensor, teacher_SD: Tensor) -> Tensor:
    """Mean over triplets of the Huber loss of the cosine of the angle at one sample to two others, RKD.

    Sample by sample, and computed again in the backward pass, so that memory grows with S^2 and not with S^3.
    """
    total = student_SD.new_zeros(())
    for at in range(len(student_SD)):
        total = total + checkpoint(_angles_apart, student_SD, teacher_SD, at, use_reentrant=False)
    return total / max(1, len(student_SD)) ** 3


def _angles_apart(student_SD: Tensor, teacher_SD: Tensor, at: int) -> Tensor:
    """Samples that are the same but for rounding, on either side, lie in no direction: their gradient had no bound."""
    sides = [side_SD - side_SD[at] for side_SD in (student_SD, teacher_SD)]
    apart_S = _is_apart(sides[0], student_SD) & _is_apart(sides[1], teacher_SD)
    directions = [F.normalize(torch.where(apart_S[:, None], side_SD, 0.0), dim=1) for side_SD in sides]
    student_SS, teacher_SS = (one_SD @ one_SD.T for one_SD in directions)
    return F.smooth_l1_loss(student_SS, teacher_SS, reduction="sum")


def _is_apart(difference_SD: Tensor, side_SD: Tensor) -> Tensor:
    least = _SAME * side_SD.detach().square().sum(dim=1).max()
    return difference_SD.detach().square().sum(dim=1) > least


def _relative_distances(side_SD: Tensor) -> Tensor:
    norms_S, products_SS = side_SD.double().square().sum(dim=1), side_SD.double() @ side_SD.double().T
    square_SS = norms_S[:, None] + norms_S[None] - 2.0 * products_SS  # in float64: no buffer of S x S x D is needed
    other_SS = ~torch.eye(len(side_SD), dtype=torch.bool, device=side_SD.device) & (square_SS > 1e-12 * norms_S.sum())
    apart_SS = torch.where(other_SS, square_SS, 1.0).sqrt() * other_SS
    mean = apart_SS.sum() / (apart_SS > 0).sum().clamp_min(1)
    return apart_SS / mean.clamp_min(torch.finfo(mean.dtype).tiny)


def _same_heads(student_NHT: Tensor, teacher_NHT: Tensor) -> tuple[Tensor, Tensor]:
    """As they are if there are as many; else the mean over heads of both."""
    if student_NHT.shape[1] == teacher_NHT.shape[1]:
        return student_NHT, teacher_NHT
    return student_NHT.mean(dim=1, keepdim=True), teacher_NHT.mean(dim=1, keepdim=True)


def _runs(owners_N: Tensor) -> list[int]:
    """How many neighbours in a row have the same owner."""
    sizes: list[int] = torch.unique_consecutive(owners_N, return_counts=True)[1].tolist()
    return sizes
