"""From logits to the next token of each row, every row by its own settings. Shapes: B rows, V vocabulary.

The draw of a row's i-th token depends on its seed and i alone: not on who else is in the batch, nor on which process
made the tokens before. Greedy rows that ask for nothing else cost one argmax for all of them together.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serving.engine import Guide, Sampling, TokenLogprob

_COLDEST = 1e-6
"""Of temperatures above 0; colder ones draw the same token, and would leave the range of float32."""
_LIKELY = 256
"""So many tokens are looked at first for top_p, and all only where they do not suffice."""


class Chooser:
    """How one request chooses, and what it has chosen so far."""

    def __init__(
        self,
        sampling: Sampling,
        *,
        num_tokens: int,
        device: torch.device | str = "cpu",
        prompt_ids: Sequence[int] = (),
        logprobs: int | None = None,
        guide: Guide | None = None,
    ) -> None:
        self.sampling = sampling
        self.logprobs = logprobs
        self.guide = guide
        self._seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._position = 0
        self.bias_V = _bias(sampling.logit_bias, num_tokens, device)
        self.counts_V: Tensor | None = None
        self.seen_V: Tensor | None = None
        if sampling.presence_penalty or sampling.frequency_penalty:
            self.counts_V = torch.zeros(num_tokens, device=device)
        if sampling.repetition_penalty != 1.0:
            self.seen_V = torch.zeros(num_tokens, dtype=torch.bool, device=device)
            self.seen_V[[token for token in prompt_ids if token < num_tokens]] = True
        self.is_plain = (
            sampling.is_greedy
            and guide is None
            and logprobs is None
            and all(each is None for each in (self.bias_V, self.counts_V, self.seen_V))
        )

    def advance(self, token: int) -> None:
        """The next token of the answer is this. Raises what the guide raises."""
        self._position += 1
        if self.guide is not None:
            self.guide.advance(token)
        if self.counts_V is not None:
            self.counts_V[token] += 1
        if self.seen_V is not None:
            self.seen_V[token] = True

    def uniform(self) -> float:
        """For the next token, in [0, 1): 53 bits of a hash of seed and position."""
        digest = blake2b(f"{self._seed}:{self._position}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token, and its log-probability where that was asked for."""

    token: int
    logprob: TokenLogprob | None = None


class CannotChoose(Exception):
    """This row has no next token: its logits are no numbers, or its guide broke or forbids everything."""


def choose(logits_BV: Tensor, choosers: Sequence[Chooser]) -> list[Chosen | CannotChoose]:
    """The next token of each row. A row that cannot choose has its reason instead, and no other row notices."""
    best_B = logits_BV.max(-1)
    chosen: list[Chosen | CannotChoose] = [Chosen(token) for token in best_B.indices.tolist()]
    for row, score in enumerate(best_B.values.tolist()):
        if not math.isfinite(score):
            chosen[row] = CannotChoose("the model's logits are no numbers")
    special = [row for row, each in enumerate(choosers) if not each.is_plain and isinstance(chosen[row], Chosen)]
    if special:
        for row, one in zip(special, _choose_or_tell(logits_BV[special].float(), choosers, special), strict=True):
            chosen[row] = one
    return chosen


def logprobs(logits_NV: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """Of one token for each row, and of so many of the most likely ones."""
    log_NV = logits_NV.float().log_softmax(-1)
    token_N1 = torch.tensor(tokens, device=log_NV.device)[:, None]
    own = log_NV.gather(-1, token_N1)[:, 0].tolist()
    most = min(max(counts, default=0), log_NV.shape[-1])
    top = log_NV.topk(most, dim=-1) if most else None
    ids, values = (top.indices.tolist(), top.values.tolist()) if top else ([()] * len(own), [()] * len(own))
    return [
        TokenLogprob(token, one, tuple(zip(ids[row][:count], values[row][:count], strict=True)))
        for row, (token, one, count) in enumerate(zip(tokens, own, counts, strict=True))
    ]


def _choose_or_tell(logits_BV: Tensor, choosers: Sequence[Chooser], rows: Sequence[int]) -> list[Chosen | CannotChoose]:
    """Together; where that breaks one by one, so that only who broke it cannot choose."""
    try:
        return _choose_special(logits_BV, choosers, rows)
    except Exception as error:  # noqa: BLE001 (process boundary of one request: its settings are not ours)
        if len(rows) > 1:
            return [
                one for at, row in enumerate(rows) for one in _choose_or_tell(logits_BV[at : at + 1], choosers, [row])
            ]
        broken = CannotChoose(f"choosing broke: {error}")
        broken.__cause__ = error
        return [broken]


def _choose_special(logits_BV: Tensor, choosers: Sequence[Chooser], rows: Sequence[int]) -> list[Chosen | CannotChoose]:
    asked = [choosers[row] for row in rows]
    scores_BV = _penalised(logits_BV, asked)
    broken = _guide(scores_BV, asked)
    tokens: list[int] = scores_BV.argmax(-1).tolist()
    drawn = [at for at, each in enumerate(asked) if not each.sampling.is_greedy and at not in broken]
    if drawn:
        for at, token in zip(drawn, _draw(scores_BV[drawn], [asked[at] for at in drawn]), strict=True):
            tokens[at] = token
    found: list[Chosen | CannotChoose] = [broken.get(at) or Chosen(token) for at, token in enumerate(tokens)]
    told = [at for at, each in enumerate(asked) if each.logprobs is not None and at not in broken]
    if told:
        counts = [asked[at].logprobs or 0 for at in told]
        for at, one in zip(told, logprobs(logits_BV[told], [tokens[at] for at in told], counts), strict=True):
            found[at] = Chosen(tokens[at], one)
    return found


def _penalised(logits_BV: Tensor, asked: Sequence[Chooser]) -> Tensor:
    """A copy, after penalties and bias."""
    scores_BV = logits_BV.clone()
    for at, each in enumerate(asked):
        sampling, row_V = each.sampling, scores_BV[at]
        if each.seen_V is not None:
            factor_V = torch.where(row_V < 0, sampling.repetition_penalty, 1 / sampling.repetition_penalty)
            row_V.mul_(torch.where(each.seen_V, factor_V, 1.0))
        if each.counts_V is not None:
            row_V.sub_(each.counts_V * sampling.frequency_penalty)
            row_V.sub_((each.counts_V > 0) * sampling.presence_penalty)
        if each.bias_V is not None:
            row_V.add_(each.bias_V)
    return scores_BV


def _guide(scores_BV: Tensor, asked: Sequence[Chooser]) -> dict[int, CannotChoose]:
    """Take away what a guide forbids, in place; rows whose guide broke by their place."""
    broken: dict[int, CannotChoose] = {}
    for at, each in enumerate(asked):
        if each.guide is None:
            continue
        try:
            allowed_V = _unpacked(each.guide.mask(), scores_BV.shape[-1])
            if not allowed_V.any():
                raise CannotChoose("the guide allows no token")
            scores_BV[at].masked_fill_(~torch.from_numpy(allowed_V).to(scores_BV.device), -torch.inf)
        except Exception as error:  # noqa: BLE001 (process boundary of one request: its guide is not ours)
            broken[at] = CannotChoose(f"the guide broke: {error}")
            broken[at].__cause__ = error
    return broken


def _unpacked(words: NDArray[np.int32], num_tokens: int) -> NDArray[np.bool_]:
    bits = np.unpackbits(np.ascontiguousarray(words, dtype="<i4").view(np.uint8), bitorder="little")[:num_tokens]
    return np.pad(bits, (0, num_tokens - len(bits))).astype(bool)


def _draw(scores_BV: Tensor, asked: Sequence[Chooser]) -> list[int]:
    """By inverse CDF in the order of the vocabulary, in float64 where sums of many small numbers matter."""
    temperature_B = _column((max(each.sampling.temperature, _COLDEST) for each in asked), scores_BV)
    scaled_BV = (scores_BV - scores_BV.amax(-1, keepdim=True)) / temperature_B
    _cut(scaled_BV, [each.sampling for each in asked])
    cumulative_BV = scaled_BV.softmax(-1).double().cumsum(-1)
    total_B1 = cumulative_BV[:, -1:]
    uniform_B1 = torch.tensor([[each.uniform()] for each in asked], dtype=torch.float64, device=scores_BV.device)
    below_B1 = torch.minimum(uniform_B1 * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    drawn: list[int] = torch.searchsorted(cumulative_BV, below_B1, right=True)[:, 0].tolist()
    return drawn


def _cut(scaled_BV: Tensor, settings: Sequence[Sampling]) -> None:
    """Take away unlikely tokens, in place: top_k, then top_p of what is left, then min_p."""
    size = scaled_BV.shape[-1]
    if rows := [at for at, each in enumerate(settings) if 0 < each.top_k < size]:
        _keep_from(scaled_BV, rows, _kth(scaled_BV[rows], [settings[at].top_k for at in rows]))
    if rows := [at for at, each in enumerate(settings) if each.top_p < 1]:
        _keep_from(scaled_BV, rows, _nucleus(scaled_BV[rows], [settings[at].top_p for at in rows]))
    if rows := [at for at, each in enumerate(settings) if each.min_p > 0]:
        least_B1 = _column((math.log(settings[at].min_p) for at in rows), scaled_BV)
        _keep_from(scaled_BV, rows, scaled_BV[rows].amax(-1, keepdim=True) + least_B1)


def _keep_from(scaled_BV: Tensor, rows: Sequence[int], least_B1: Tensor) -> None:
    some_BV = scaled_BV[rows]
    scaled_BV[rows] = some_BV.masked_fill_(some_BV < least_B1, -torch.inf)


def _kth(scaled_BV: Tensor, counts: Sequence[int]) -> Tensor:
    """The least score of the so many best."""
    top_BK = scaled_BV.topk(max(counts), dim=-1).values
    return top_BK.gather(-1, torch.tensor(counts, device=scaled_BV.device)[:, None] - 1)


def _nucleus(scaled_BV: Tensor, masses: Sequence[float]) -> Tensor:
    """The least score among the fewest tokens whose probability together reaches `top_p`."""
    mass_B1 = _column(masses, scaled_BV).double()
    normal_B1 = scaled_BV.logsumexp(-1, keepdim=True)
    few = min(_LIKELY, scaled_BV.shape[-1])
    sorted_BK = scaled_BV.topk(few, dim=-1).values
    if few < scaled_BV.shape[-1] and bool(
        ((sorted_BK - normal_B1).double().exp().sum(-1, keepdim=True) < mass_B1).any()
    ):
        sorted_BK = scaled_BV.sort(dim=-1, descending=True).values
    probability_BK = (sorted_BK - normal_B1).double().exp()
    before_BK = probability_BK.cumsum(-1) - probability_BK
    last_B1 = (before_BK < mass_B1).sum(-1, keepdim=True).clamp(min=1) - 1
    return sorted_BK.gather(-1, last_B1)


def _column(values: Iterable[float], like: Tensor) -> Tensor:
    return torch.tensor(list(values), dtype=like.dtype, device=like.device)[:, None]


def _bias(pairs: Sequence[tuple[int, float]], num_tokens: int, device: torch.device | str) -> Tensor | None:
    known = [(token, value) for token, value in pairs if 0 <= token < num_tokens]
    if not known:
        return None
    bias_V = torch.zeros(num_tokens, device=device)
    for token, value in known:
        bias_V[token] = value
    return bias_V
