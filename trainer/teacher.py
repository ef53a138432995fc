"""The model that teaches: what it answers (`Teacher`), and one process' share of it (`TeacherModel`).

Pure compute: the same question has the same answer, whole or sharded, here or in another process.
Actors, references and restarts are the affair of `cluster/`, which wraps `TeacherModel`.

Shapes: N learned positions of a batch, D the teacher's hidden size, V rows of its head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from trainer.batch import NOT_LEARNED, Batch, Sample, collate, empty_batch
from trainer.device import compute_device, import_deepspeed
from trainer.generate import TokenIds, generate
from trainer.losses import Head, token_losses
from trainer.models import (
    DTYPES,
    check_logits,
    check_rows,
    hidden_at_rows,
    keeps_samples_apart,
    load_model,
    packing_refused,
    split,
)
from trainer.peers import Peers
from trainer.sharded_loading import load_sharded, stage3
from trainer.tokenizer import load_tokenizer

log = logging.getLogger(__name__)
_PROBE_TOKENS = 8


@dataclass(frozen=True)
class Targets:
    """What the teacher says about one batch."""

    hidden_ND: Tensor | None
    """Final hidden states (after the final norm) at `batch.rows_N`, in the teacher's dtype."""


class Teacher(Protocol):
    """What the loop asks of a teacher, wherever it lives."""

    def head(self) -> Head:
        """What makes logits of its hidden states: fetched once, not with every batch."""

    def request(self, batch: Batch) -> Callable[[], Targets]:
        """Starts the work; the returned function waits for the answer."""

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy completions, without the end token."""

    def score(self, batch: Batch) -> list[tuple[float, int]]:
        """For each of `batch.sample_ids`: summed negative log-likelihood (nats) and number of learned tokens."""


@dataclass(frozen=True)
class _NextToken:
    """One step of decoding: what `NextLogits` is given."""

    ids_BT: Tensor
    mask_BS: Tensor
    positions_BT: Tensor
    cache: DynamicCache


class _Root(nn.Module):
    """Every use of a teacher is one forward of this module, whose hooks fetch and drop the shards."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Batch | _NextToken) -> Tensor:
        """[N, D] hidden states of a batch, or [B, V] logits of the next token."""
        if isinstance(work, Batch):
            return hidden_at_rows(self.model, work)
        logits_BTV: Tensor = self.model(
            input_ids=work.ids_BT,
            attention_mask=work.mask_BS,
            position_ids=work.positions_BT,
            past_key_values=work.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits_BTV[:, -1]


class TeacherModel:
    """One process' share of a model that is only read: all of it, or one ZeRO-3 shard of `world`.

    With `world` > 1 the default process group is there already, and every method is collective: all shards call the
    same methods in the same order, idle ones with None or [].
    A process reads its own share alone, unless the files do not match the model one to one: see `sharded_loading`.
    """

    def __init__(
        self, source: str, *, dtype: str, rank: int = 0, world: int = 1, tokens: TokenIds | None = None
    ) -> None:
        self._peers = Peers(rank, world)
        self._device = compute_device()
        model = self._load(source, DTYPES[dtype])
        self._tokens = tokens or TokenIds.of(load_tokenizer(source), model.generation_config)
        check_rows(model, self._tokens.num_tokens, source)
        self._refused = None if keeps_samples_apart(model, self._forward) else packing_refused(model, source)

    def _load(self, source: str, dtype: torch.dtype) -> PreTrainedModel:
        """A sharded model is checked as it runs, by all shards: none of them has it whole."""
        if self._peers.world == 1:
            model = load_model(source, dtype)
        else:
            model, reason = load_sharded(source, dtype, self._peers)
            if reason is not None:
                log.warning("every shard of %s loads the whole model: %s", source, reason)
        self._root = _Root(model).requires_grad_(False)
        if self._peers.world == 1:
            self._forward: nn.Module = self._root.to(self._device)
        else:
            self._forward = _sharded(self._root, stage3(model, dtype))
            self._check_head(source)
        return model

    @torch.no_grad()
    def _check_head(self, source: str) -> None:
        """As `check_head` does, after single tokens."""
        samples = [Sample(sample_id=i, input_ids=[i, i], labels=[NOT_LEARNED, i]) for i in range(_PROBE_TOKENS)]
        batch = collate([(i,) for i in range(_PROBE_TOKENS)], samples, 0).to(self._device)
        ids_BT = torch.arange(_PROBE_TOKENS, device=self._device)[:, None]
        first = _NextToken(ids_BT, torch.ones_like(ids_BT), torch.zeros_like(ids_BT), DynamicCache())
        check_logits(self.head(), self._forward(batch), self._forward(first), source)

    @torch.no_grad()
    def head(self) -> Head:
        """The whole output head, on every shard; not kept, for a head may weigh more than a shard (I7)."""
        head = split(self._root.model).head
        return _gathered(head) if self._peers.world > 1 else _detached(head)

    @torch.no_grad()
    def targets(self, batch: Batch | None) -> Targets:
        batch = (batch or empty_batch(self._tokens.pad_id)).to(self._device)
        if self._refused is not None and batch.is_packed():
            raise self._refused
        return Targets(self._forward(batch))

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        def next_logits(ids_BT: Tensor, mask_BS: Tensor, positions_BT: Tensor, cache: DynamicCache) -> Tensor:
            logits_BV: Tensor = self._forward(_NextToken(ids_BT, mask_BS, positions_BT, cache))
            return logits_BV

        return generate(next_logits, prompts, max_new_tokens, self._tokens, device=self._device, peers=self._peers)

    def score(self, batch: Batch | None) -> list[tuple[float, int]]:
        batch = (batch or empty_batch(self._tokens.pad_id)).to(self._device)
        hidden_ND = self.targets(batch).hidden_ND
        assert hidden_ND is not None
        losses_N = token_losses(hidden_ND, self.head(), batch.target_ids_N, num_tokens=self._tokens.num_tokens)
        owners_N = batch.owners_N()
        zeros = torch.zeros(len(batch.sample_ids), dtype=torch.float64, device=self._device)
        sums = zeros.index_add(0, owners_N, losses_N.double()).tolist()
        counts = torch.bincount(owners_N, minlength=len(batch.sample_ids)).tolist()
        return list(zip(sums, counts, strict=True))


class LocalTeacher:
    """A teacher in the student's own process."""

    def __init__(self, model: TeacherModel) -> None:
        self._model = model

    def head(self) -> Head:
        return self._model.head()

    def request(self, batch: Batch) -> Callable[[], Targets]:
        targets = self._model.targets(batch)
        return lambda: targets

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        return self._model.generate(prompts, max_new_tokens)

    def score(self, batch: Batch) -> list[tuple[float, int]]:
        return self._model.score(batch)


def _sharded(root: nn.Module, config: dict[str, Any]) -> nn.Module:
    """The module whose parameters are parted over the process group."""
    engine, *_ = import_deepspeed().initialize(model=root, config=config, dist_init_required=False)
    engine.eval()
    sharded: nn.Module = engine
    return sharded


def _gathered(head: Head) -> Head:
    """Collective; the whole lives as long as what is given back, however the parameters are parted again."""
    parts = [part for part in (head.weight_VD, head.bias_V) if part is not None]
    with import_deepspeed().zero.GatheredParameters(parts):
        return _detached(head)


def _detached(head: Head) -> Head:
    return Head(head.weight_VD.detach(), None if head.bias_V is None else head.bias_V.detach())
