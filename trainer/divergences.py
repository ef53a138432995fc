"""How far a student's distribution is from its teacher's, and which way is downhill: one family, one table.

Each member is a function of log-probabilities of the same rows. It gives the value of each row and the gradient for
the student's logits, exactly zero where both agree. Knows no model, no temperature, no chunk: `losses.py` does.

Shapes: R rows, V entries (of a vocabulary, or of the buckets of a top-k answer). p is the teacher, q the student.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST = 80.0
"""exp(80) is finite in float32; beyond, one of the two probabilities is nothing beside the other."""
_LEAST_SHARE = 1e-12
"""Of either side in a mixture: with less it is the KL at that end."""
_NEARLY_ALL = 0.999
"""Share of the other side in a mixture beyond which 1 - share * (1 - ratio) would lose its digits to rounding."""


@dataclass(frozen=True)
class Settings:
    """The parameters of all members; each reads its own."""

    beta: float = 0.5
    """jsd: 0 is forward KL, 1 is reverse KL."""
    skew_lambda: float = 0.1
    """skewed_*: share of the other side in the mixture."""
    adaptive_kl_alpha: float = 0.5
    """adaptive_kl: teacher's probability mass that counts as the head."""
    taid_t: float = 1.0
    """taid: share of the teacher in the interpolated target, of this step."""


Rows = tuple[Tensor, Tensor]
"""Value of each row [R] in nats, and its gradient [R, V] for the student's logits."""


def forward_kl(log_p_RV: Tensor, log_q_RV: Tensor, _settings: Settings) -> Rows:
    """KL(p || q), Hinton et al., arXiv 1503.02531."""
    p_RV = log_p_RV.exp()
    value_R = torch.linalg.vecdot(p_RV, log_p_RV - log_q_RV)
    return value_R, log_q_RV.exp().sub_(p_RV)


def reverse_kl(log_p_RV: Tensor, log_q_RV: Tensor, _settings: Settings) -> Rows:
    """KL(q || p), MiniLLM, arXiv 2306.08543."""
    q_RV, apart_RV = log_q_RV.exp(), log_q_RV - log_p_RV
    value_R = torch.linalg.vecdot(q_RV, apart_RV)
    return value_R, apart_RV.sub_(value_R[:, None]).mul_(q_RV)


def jsd(log_p_RV: Tensor, log_q_RV: Tensor, settings: Settings) -> Rows:
    """Generalised Jensen-Shannon over beta (1 - beta), GKD, arXiv 2306.13649: the KLs are its ends, without a jump.

    m = beta p + (1 - beta) q; KL(p || m) / (1 - beta) + KL(q || m) / beta. At beta 0.5 it is four times the plain JSD.
    """
    beta = settings.beta
    if beta < _LEAST_SHARE:
        return forward_kl(log_p_RV, log_q_RV, settings)
    if beta > 1.0 - _LEAST_SHARE:
        return reverse_kl(log_p_RV, log_q_RV, settings)
    p_RV, q_RV = log_p_RV.exp(), log_q_RV.exp()
    from_p_RV = _log_ratio_to_mixture(log_q_RV - log_p_RV, 1.0 - beta)
    from_q_RV = _log_ratio_to_mixture(log_p_RV - log_q_RV, beta)
    value_R = torch.linalg.vecdot(p_RV, from_p_RV) / (1.0 - beta) + torch.linalg.vecdot(q_RV, from_q_RV) / beta
    return value_R, _centred(from_q_RV.div_(beta), q_RV)


def skewed_forward_kl(log_p_RV: Tensor, log_q_RV: Tensor, settings: Settings) -> Rows:
    """KL(p || m), m = lambda p + (1 - lambda) q, DistiLLM, arXiv 2402.03898."""
    skew = settings.skew_lambda
    if skew < _LEAST_SHARE:
        return forward_kl(log_p_RV, log_q_RV, settings)
    p_RV, q_RV = log_p_RV.exp(), log_q_RV.exp()
    value_R = torch.linalg.vecdot(p_RV, _log_ratio_to_mixture(log_q_RV - log_p_RV, 1.0 - skew))
    mixture_RV = skew * p_RV + (1.0 - skew) * q_RV
    return value_R, _centred(_ratio((1.0 - skew) ** 2 * (q_RV - p_RV), mixture_RV), q_RV)


def skewed_reverse_kl(log_p_RV: Tensor, log_q_RV: Tensor, settings: Settings) -> Rows:
    """KL(q || m), m = (1 - lambda) p + lambda q, DistiLLM, arXiv 2402.03898."""
    skew = settings.skew_lambda
    if skew < _LEAST_SHARE:
        return reverse_kl(log_p_RV, log_q_RV, settings)
    p_RV, q_RV = log_p_RV.exp(), log_q_RV.exp()
    apart_RV = _log_ratio_to_mixture(log_p_RV - log_q_RV, 1.0 - skew)
    value_R = torch.linalg.vecdot(q_RV, apart_RV)
    mixture_RV = (1.0 - skew) * p_RV + skew * q_RV
    return value_R, _centred(apart_RV + _ratio(skew * (1.0 - skew) * (p_RV - q_RV), mixture_RV), q_RV)


def adaptive_kl(log_p_RV: Tensor, log_q_RV: Tensor, settings: Settings) -> Rows:
    """Forward and reverse KL by where they differ more, head or tail of the teacher, AKL, arXiv 2404.02657.

    The head are the teacher's likeliest entries up to `adaptive_kl_alpha` of its mass. The weights carry no gradient.
    """
    p_RV, q_RV = log_p_RV.exp(), log_q_RV.exp()
    apart_RV = (p_RV - q_RV).abs_()
    head_R = apart_RV.masked_fill(~_head_of(p_RV, settings.adaptive_kl_alpha), 0.0).sum(dim=1)
    whole_R = apart_RV.sum(dim=1)
    share_R = torch.where(whole_R > 0, head_R / whole_R.clamp_min(torch.finfo(whole_R.dtype).tiny), 0.5)
    forward, reverse = forward_kl(log_p_RV, log_q_RV, settings), reverse_kl(log_p_RV, log_q_RV, settings)
    share_R1 = share_R[:, None]
    return torch.lerp(reverse[0], forward[0], share_R), torch.lerp(reverse[1], forward[1], share_R1)


def tvd(log_p_RV: Tensor, log_q_RV: Tensor, _settings: Settings) -> Rows:
    """Total variation distance, half the sum of |p - q|, f-divergence distillation, arXiv 2307.15190."""
    q_RV = log_q_RV.exp()
    apart_RV = q_RV - log_p_RV.exp()
    return apart_RV.abs().sum(dim=1) / 2, _centred(apart_RV.sign_().div_(2), q_RV)


def taid(log_p_RV: Tensor, log_q_RV: Tensor, settings: Settings) -> Rows:
    """KL(p_t || q), p_t = softmax((1 - t) student logits + t teacher logits), TAID, arXiv 2501.16937.

    The student's part of the target carries no gradient.
    """
    target_RV = torch.lerp(log_q_RV, log_p_RV, settings.taid_t).log_softmax(dim=1)
    return forward_kl(target_RV, log_q_RV.log_softmax(dim=1), settings)  # rounded as the target is: zero stays zero


Divergence = Callable[[Tensor, Tensor, Settings], Rows]

DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skewed_forward_kl": skewed_forward_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "adaptive_kl": adaptive_kl,
    "tvd": tvd,
    "taid": taid,
}


def _centred(slope_RV: Tensor, q_RV: Tensor) -> Tensor:
    """From the derivative by q to the one by the logits of q = softmax: q (slope - sum q slope)."""
    mean_R1 = torch.linalg.vecdot(q_RV, slope_RV)[:, None]
    centred_RV: Tensor = slope_RV - mean_R1
    return centred_RV.mul_(q_RV)


def _log_ratio_to_mixture(other_over_own_RV: Tensor, share: float) -> Tensor:
    """log(own / ((1 - share) own + share other)) of log(other / own): exact zero at zero, finite everywhere."""
    grown_RV: Tensor = other_over_own_RV.clamp_max(_MOST).expm1_()
    near_RV: Tensor = grown_RV.mul_(share).log1p_().neg_()
    if share <= _NEARLY_ALL:
        return near_RV
    own = other_over_own_RV.new_tensor(math.log(1.0 - share))
    far_RV = torch.logaddexp(other_over_own_RV + math.log(share), own).neg_()
    return torch.where(other_over_own_RV < -1.0, far_RV, near_RV)


def _ratio(above_RV: Tensor, below_RV: Tensor) -> Tensor:
    ratio_RV: Tensor = above_RV.div_(below_RV.clamp_min_(torch.finfo(below_RV.dtype).tiny))
    return ratio_RV


def _head_of(p_RV: Tensor, mass: float) -> Tensor:
    """Entries that are needed, from the likeliest down, until `mass` is reached; always the likeliest one."""
    ordered_RV, places_RV = p_RV.sort(dim=1, descending=True, stable=True)
    before_RV = ordered_RV.cumsum(dim=1) - ordered_RV
    return torch.zeros_like(p_RV, dtype=torch.bool).scatter_(1, places_RV, before_RV < mass)


@dataclass(frozen=True)
class TaidSettings:
    """Of TAID, arXiv 2501.16937; the defaults are the authors'."""

    t_start: float = 0.4
    t_end: float = 1.0
    alpha: float = 5e-4
    beta: float = 0.99


@dataclass(frozen=True)
class TaidPace:
    """What TAID remembers from one step to the next: how fast the target moves from student to teacher."""

    t: float
    momentum: float = 0.0
    loss: float | None = None
    """Mean divergence of the step before."""

    def after(self, loss: float, share: float, settings: TaidSettings) -> TaidPace:
        """After a step with that mean divergence; `share` (0 to 1) of all steps are over. Equations 5 and 6."""
        if self.loss is None:
            return TaidPace(self.t, self.momentum, loss)
        change = (self.loss - loss) / (self.loss + 1e-15) if self.loss > 0.0 else 0.0  # from nothing, no progress
        momentum = settings.beta * self.momentum + (1.0 - settings.beta) * change
        pace = 1.0 / (1.0 + math.exp(min(-momentum, _MOST)))
        raised = self.t + settings.alpha * pace * (1.0 - self.t)
        least = settings.t_start + (settings.t_end - settings.t_start) * share
        return TaidPace(min(settings.t_end, max(least, raised)), momentum, loss)
