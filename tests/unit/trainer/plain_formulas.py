"""Every divergence as it is written in its paper, of whole rows of log-probabilities, differentiable by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.divergences import Settings


def kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one || other) of log-probabilities, as it is written."""
    return (one.exp() * (one - other)).sum(dim=1)


def mixture(one: Tensor, other: Tensor, share: float) -> Tensor:
    """log(share one + (1 - share) other)."""
    return torch.logaddexp(one + math.log(share), other + math.log(1.0 - share))


def plain_adaptive(p: Tensor, q: Tensor, chosen: Settings) -> Tensor:
    weights = []
    for p_V, q_V in zip(p.exp().detach(), q.exp().detach(), strict=True):
        head, tail, mass = 0.0, 0.0, 0.0
        for at in sorted(range(len(p_V)), key=lambda at: -p_V[at].item()):
            gap = abs(p_V[at] - q_V[at]).item()
            head, tail = (head + gap, tail) if mass < chosen.adaptive_kl_alpha else (head, tail + gap)
            mass += p_V[at].item()
        weights.append(head / (head + tail) if head + tail else 0.5)
    share = torch.tensor(weights, dtype=p.dtype)
    return share * kl(p, q) + (1 - share) * kl(q, p)


def plain_jsd(p: Tensor, q: Tensor, chosen: Settings) -> Tensor:
    """TRL's generalized_jsd_loss, divided by beta (1 - beta)."""
    mixed = mixture(p, q, chosen.beta)
    theirs = chosen.beta * kl(p, mixed) + (1 - chosen.beta) * kl(q, mixed)
    return theirs / (chosen.beta * (1 - chosen.beta))


def plain_taid(p: Tensor, q: Tensor, chosen: Settings) -> Tensor:
    target = ((1 - chosen.taid_t) * q.detach() + chosen.taid_t * p).log_softmax(dim=1)
    return kl(target, q)


PLAIN: dict[str, Callable[[Tensor, Tensor, Settings], Tensor]] = {
    "forward_kl": lambda p, q, _: kl(p, q),
    "reverse_kl": lambda p, q, _: kl(q, p),
    "jsd": plain_jsd,
    "skewed_forward_kl": lambda p, q, chosen: kl(p, mixture(p, q, chosen.skew_lambda)),
    "skewed_reverse_kl": lambda p, q, chosen: kl(q, mixture(q, p, chosen.skew_lambda)),
    "adaptive_kl": plain_adaptive,
    "tvd": lambda p, q, _: (p.exp() - q.exp()).abs().sum(dim=1) / 2,
    "taid": plain_taid,
}
