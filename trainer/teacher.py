"""The model that teaches: what it answers (`Teacher`), and one process' share of it (`TeacherModel`).

Pure compute: the same question has the same answer, whole or sharded, here or in another process.
Actors, references and restarts are the affair of `cluster/`, which wraps `TeacherModel`.

Shapes: N learned positions of a batch, D the teacher's hidden size, V rows of its head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from trainer.answers import TopkAnswer, topk_answer
from trainer.batch import Batch, Sample, collate, empty_batch
from trainer.device import compute_device, import_deepspeed, keep_freed_memory
from trainer.errors import UserError
from trainer.generate import TokenIds, generate
from trainer.head import Head
from trainer.losses import blocks, label_losses
from trainer.models import (
    DTYPES,
    check_rows,
    head_error,
    head_tolerance,
    keeps_samples_apart,
    load_model,
    logits_at_rows,
    packing_refused,
    split,
)
from trainer.own_logits import logits_of_hidden
from trainer.peers import Peers
from trainer.sharded_loading import held_whole, load_sharded, stage3
from trainer.taps import reads_attention, shape_of, tap_attention, tapped
from trainer.tokenizer import load_tokenizer
from trainer.wanted import LAST_HIDDEN, TeacherFacts, Wanted

log = logging.getLogger(__name__)
_PROBE_TOKENS = 8


@dataclass(frozen=True)
class Targets:
    """What one teacher says about one batch, at `batch.rows_N`: one of the payloads, and the inner values wanted."""

    hidden_ND: Tensor | None = None
    """Final hidden states (after the final norm), in the teacher's dtype."""
    logits_NV: Tensor | None = None
    topk: TopkAnswer | None = None
    inner: Mapping[str, Tensor] = field(default_factory=dict)

    def tap(self, name: str) -> Tensor:
        """An inner value by its name; the final hidden states travel once, whoever wants them."""
        if name == LAST_HIDDEN and self.hidden_ND is not None:
            return self.hidden_ND
        return self.inner[name]

    def to(self, device: torch.device) -> Targets:
        return Targets(
            None if self.hidden_ND is None else self.hidden_ND.to(device),
            None if self.logits_NV is None else self.logits_NV.to(device),
            None if self.topk is None else self.topk.to(device),
            {name: value.to(device) for name, value in self.inner.items()},
        )


class Teacher(Protocol):
    """What the loop asks of a teacher, wherever it lives."""

    def facts(self, batch: Batch) -> TeacherFacts:
        """What it is like; `batch` of real samples shows whether its head is all there is between states and logits."""

    def head(self) -> Head:
        """What makes logits of its hidden states: fetched once, not with every batch."""

    def request(self, batch: Batch, wanted: Wanted) -> Callable[[], Targets]:
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


@dataclass(frozen=True)
class _Look:
    """A pass over a batch: final hidden states and inner values."""

    batch: Batch
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _OwnLogits:
    """A pass over a batch whose logits the model makes itself, whatever it does beyond its head."""

    batch: Batch


@dataclass(frozen=True)
class _OwnHead:
    """The model's own way from final hidden states that are there already."""

    hidden_RD: Tensor


class _Root(nn.Module):
    """Every use of a teacher is one forward of this module, whose hooks fetch and drop the shards."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: _Look | _OwnLogits | _OwnHead | _NextToken) -> tuple[Tensor, dict[str, Tensor]]:
        """[N, D] hidden states and inner values, [N, V] or [R, V] own logits, or [B, V] logits of the next token."""
        if isinstance(work, _Look):
            return tapped(self.model, work.batch, work.names)
        if isinstance(work, _OwnLogits):
            return logits_at_rows(self.model, work.batch), {}
        if isinstance(work, _OwnHead):
            return logits_of_hidden(self.model, work.hidden_RD), {}
        logits_BTV: Tensor = self.model(
            input_ids=work.ids_BT,
            attention_mask=work.mask_BS,
            position_ids=work.positions_BT,
            past_key_values=work.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits_BTV[:, -1], {}


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
        self._loaded_whole: str | None = None
        model = self._load(source, DTYPES[dtype])
        self._shape = shape_of(model)
        self._tokens = tokens or TokenIds.of(load_tokenizer(source), model.generation_config)
        self._refused: UserError | None = None
        check_rows(model, self._tokens.num_tokens, source)
        if not keeps_samples_apart(model, lambda batch: self._forward(_Look(batch))[0]):
            self._refused = packing_refused(model, source)
        self._head_error = 0.0
        probed = self.facts(self._probe())
        self._head_error, self._has_plain_head = probed.head_error, probed.has_plain_head
        self._head_stands_alone = not self._has_plain_head and self._makes_logits_without_its_body(probed)

    def _load(self, source: str, dtype: torch.dtype) -> PreTrainedModel:
        """A sharded model is checked as it runs, by all shards: none of them has it whole."""
        if self._peers.world == 1:
            keep_freed_memory()
            model = load_model(source, dtype)
        else:
            model, reason = load_sharded(source, dtype, self._peers)
            if reason is not None:
                self._loaded_whole = f"every shard of {source} reads the whole model before it is parted: {reason}"
                log.warning(self._loaded_whole)
        self._root = _Root(model).requires_grad_(False)
        if self._peers.world == 1:
            self._forward: nn.Module = self._root.to(self._device)
        else:
            self._forward = _sharded(self._root, stage3(model, dtype))
        return model

    def _probe(self) -> Batch:
        """Single tokens from all over the vocabulary."""
        ids = torch.linspace(0, self._tokens.num_tokens - 1, _PROBE_TOKENS).long().tolist()
        samples = [Sample(sample_id=at, input_ids=[one, one], labels=[one, one]) for at, one in enumerate(ids)]
        return collate([(at,) for at in range(len(samples))], samples, self._tokens.pad_id)

    @torch.no_grad()
    def facts(self, batch: Batch | None) -> TeacherFacts:
        batch = self._placed(batch)
        hidden_ND, _ = self._forward(_Look(batch))
        own_NV, _ = self._forward(_OwnLogits(batch))
        head = self.head()
        dtype = head.weight_VD.dtype
        error = max(self._head_error, self._peers.largest(head_error(head.logits_RV(hidden_ND), own_NV)))
        rounding = head_tolerance(dtype)
        return TeacherFacts(
            self._shape, self._tokens.num_tokens, dtype.itemsize, error, rounding, loaded_whole=self._loaded_whole
        )

    @torch.no_grad()
    def _makes_logits_without_its_body(self, probed: TeacherFacts) -> bool:
        """Whether its own code gives the same logits for hidden states as for texts. Collective."""
        batch = self._placed(self._probe())
        hidden_ND, _ = self._forward(_Look(batch))
        own_NV, _ = self._forward(_OwnLogits(batch))
        try:
            found_NV, _ = self._forward(_OwnHead(hidden_ND))
        except (AttributeError, TypeError, ValueError):
            return False  # its code looks at more than hidden states
        return self._peers.largest(head_error(found_NV, own_NV)) <= probed.head_tolerance

    @torch.no_grad()
    def head(self) -> Head:
        """The whole output head, on every shard; not kept, for a head may weigh more than a shard (I7)."""
        head = split(self._root.model).head
        return _gathered(head) if self._peers.world > 1 else _detached(head)

    @torch.no_grad()
    def targets(self, batch: Batch | None, wanted: Wanted) -> Targets:
        batch = self._placed(batch)
        if reads_attention(wanted.taps):
            tap_attention(self._root.model)
        hidden_ND, inner = self._forward(_Look(batch, wanted.taps))
        if wanted.payload == "hidden_states":
            inner.pop(LAST_HIDDEN, None)
            return Targets(hidden_ND=hidden_ND, inner=inner)
        if wanted.payload is None:
            return Targets(inner=inner)
        if wanted.payload == "full_logits":
            return Targets(logits_NV=torch.cat(list(self._logits(batch, hidden_ND, wanted.own_logits))), inner=inner)
        parts = self._logits(batch, hidden_ND, wanted.own_logits)
        tops = [topk_answer(part_RV, wanted.top_k, wanted.temperature) for part_RV in parts]
        return Targets(topk=TopkAnswer.cat(tops), inner=inner)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        def next_logits(ids_BT: Tensor, mask_BS: Tensor, positions_BT: Tensor, cache: DynamicCache) -> Tensor:
            logits_BV: Tensor = self._forward(_NextToken(ids_BT, mask_BS, positions_BT, cache))[0]
            return logits_BV

        return generate(next_logits, prompts, max_new_tokens, self._tokens, device=self._device, peers=self._peers)

    @torch.no_grad()
    def score(self, batch: Batch | None) -> list[tuple[float, int]]:
        batch = self._placed(batch)
        hidden_ND, _ = self._forward(_Look(batch))
        logits_NV, ids_N = self._logits(batch, hidden_ND), batch.target_ids_N
        parts = [label_losses(part_RV, ids_R) for part_RV, ids_R in _aligned(logits_NV, ids_N)]
        owners_N = batch.owners_N()
        zeros = torch.zeros(len(batch.sample_ids), dtype=torch.float64, device=self._device)
        sums = zeros.index_add(0, owners_N, torch.cat(parts).double()).tolist()
        counts = torch.bincount(owners_N, minlength=len(batch.sample_ids)).tolist()
        return list(zip(sums, counts, strict=True))

    def _placed(self, batch: Batch | None) -> Batch:
        """On this process' device; an idle shard keeps step over padding."""
        batch = (batch or empty_batch(self._tokens.pad_id)).to(self._device)
        if self._refused is not None and batch.is_packed():
            raise self._refused
        return batch

    def _logits(self, batch: Batch, hidden_ND: Tensor, own: bool = False) -> Iterator[Tensor]:
        """[R, V] of the real tokens, block by block; by the head where that is all, else by the model itself."""
        num_tokens = self._tokens.num_tokens
        if self._has_plain_head and not own:
            head = self.head().first(num_tokens)
            yield from (head.logits_RV(hidden_ND[rows]) for rows in blocks(hidden_ND, num_tokens))
        elif self._head_stands_alone:
            parts = list(blocks(hidden_ND, num_tokens))
            idle = [slice(0, 0)] * (self._peers.max(len(parts)) - len(parts))  # shards keep step
            head = split(self._root.model).head
            with held_whole(head.weight_VD, head.bias_V):
                for rows in (*parts, *idle):
                    yield self._forward(_OwnHead(hidden_ND[rows]))[0][:, :num_tokens]
        else:
            yield self._forward(_OwnLogits(batch))[0][:, :num_tokens]


def _aligned(parts: Iterator[Tensor], rows_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each part of some rows with the same part of others."""
    start = 0
    for part in parts:
        yield part, rows_N[start : start + len(part)]
        start += len(part)


class LocalTeacher:
    """A teacher in the student's own process."""

    def __init__(self, model: TeacherModel) -> None:
        self._model = model

    def facts(self, batch: Batch) -> TeacherFacts:
        return self._model.facts(batch)

    def head(self) -> Head:
        return self._model.head()

    def request(self, batch: Batch, wanted: Wanted) -> Callable[[], Targets]:
        targets = self._model.targets(batch, wanted)
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
    with held_whole(head.weight_VD, head.bias_V):
        return _detached(head)


def _detached(head: Head) -> Head:
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return replace(head, weight_VD=head.weight_VD.detach(), bias_V=bias_V)
