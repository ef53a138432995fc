"""Greedy decoding of many prompts at once: left padding, a key-value cache, and the same steps on every peer.

One function serves the teacher's labels, its shards in lockstep, and evaluation. It samples nothing and streams
nothing: answering users is the affair of `serving/`.

Shapes: B prompts of one group, T new positions of a step, S positions seen so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from trainer.peers import Peers

GROUP_TOKENS = 1 << 14
"""Positions that one group holds in its cache: bounds memory, and spares a sharded model gathers of its weights."""


def group_size(prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """How many prompts are decoded at once."""
    longest = max((len(prompt) for prompt in prompts), default=0) + max_new_tokens
    return max(1, GROUP_TOKENS // max(1, longest))


@dataclass(frozen=True)
class TokenIds:
    """What decoding must know of a tokenizer."""

    num_tokens: int
    """Real entries of the vocabulary; padded rows of a head are never chosen."""
    pad_id: int
    eos_ids: tuple[int, ...]

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase, generation_config: Any = None) -> TokenIds:
        """The tokenizer's end token, and those that the model's own generation config names."""
        named = getattr(generation_config, "eos_token_id", None)
        more = named if isinstance(named, list) else [named]
        eos_ids = tuple(dict.fromkeys(one for one in (tokenizer.eos_token_id, *more) if one is not None))
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (eos_ids or (0,))[0]
        return TokenIds(len(tokenizer), int(pad_id), eos_ids)


class NextLogits(Protocol):
    """One forward: logits [B, V] after the last of the new positions; `cache` is extended in place."""

    def __call__(self, ids_BT: Tensor, mask_BS: Tensor, positions_BT: Tensor, cache: DynamicCache) -> Tensor: ...


@torch.no_grad()
def generate(
    next_logits: NextLogits,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    tokens: TokenIds,
    *,
    device: torch.device,
    peers: Peers | None = None,
) -> list[list[int]]:
    """Completions in the order of `prompts`, without the end token.

    With `peers` it is collective: all run as many forwards as the one with the most work (none may stop a shard).
    """
    peers = peers or Peers.alone()
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    size = group_size(prompts, max_new_tokens)
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    completions: list[list[int]] = [[] for _ in prompts]
    for place in range(peers.max(len(groups))):
        group = groups[place] if place < len(groups) else []
        rows = [prompts[index] for index in group]
        found = _decode(next_logits, rows or [[tokens.pad_id]], max_new_tokens, tokens, device, peers, not rows)
        for index, row in zip(group, found, strict=False):
            completions[index] = row
    return completions


def _decode(
    next_logits: NextLogits,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    tokens: TokenIds,
    device: torch.device,
    peers: Peers,
    idle: bool,
) -> list[list[int]]:
    """One group; a row that has ended goes on with padding until all have."""
    ids_BT, mask_BS = _left_padded(rows, tokens.pad_id, device)
    positions_BT = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)
    ended_B = torch.full((len(rows),), idle, dtype=torch.bool, device=device)
    eos_ids = torch.tensor(tokens.eos_ids, dtype=torch.long, device=device)
    cache, chosen = DynamicCache(), []
    for _ in range(max_new_tokens):
        logits_BV = next_logits(ids_BT, mask_BS, positions_BT, cache)
        chosen_B = logits_BV[:, : tokens.num_tokens].argmax(dim=-1)
        ended_B = ended_B | torch.isin(chosen_B, eos_ids)
        chosen.append(chosen_B.masked_fill(ended_B, -1))
        if not peers.any(not bool(ended_B.all())):
            break
        ids_BT = chosen_B.masked_fill(ended_B, tokens.pad_id)[:, None]
        mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(rows), 1)], dim=1)
        positions_BT = positions_BT[:, -1:] + 1
    return [[one for one in row if one >= 0] for row in torch.stack(chosen, dim=1).tolist()]


def _left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids [B, T], mask [B, T] of 0 and 1)."""
    longest = max(len(row) for row in rows)
    ids = [[pad_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
