"""Attention of a run whose rows stand in one line without padding: each new token sees what its own row holds.

Registered with `transformers` under a name of its own, and in use only while a `PackedRunner` runs. Rows with one new
token are computed together, grouped by the heads of their keys; rows with more one after the other.
Shapes: N new tokens of all rows, B rows of one token, T tokens of one row, H heads, K heads of keys, G = H / K, D their
size, S slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import get_layer_types_and_kwargs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NAME = "athanor_packed"
_KINDS = ("full_attention", "sliding_attention", "chunked_attention")
_UNKNOWN = ("s_aux", "position_bias", "head_mask")
"""What some models give to their attention, and this one does not do."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back a layer sees: a kind of attention, and its width in tokens; 0 is all."""

    kind: str
    width: int


def reaches(config: PreTrainedConfig) -> tuple[Reach, ...] | None:
    """Of each layer; None where one keeps something else than keys and values of all tokens."""
    kinds, settings = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    if not kinds or any(kind not in _KINDS for kind in kinds):
        return None
    return tuple(Reach(kind, each.get("sliding_window") or 0) for kind, each in zip(kinds, settings, strict=True))


@dataclass(frozen=True, slots=True)
class Part:
    """New tokens of one row: where they begin among all new ones, how many there are, and how many came before."""

    row: int
    offset: int
    count: int
    start: int

    @property
    def end(self) -> int:
        return self.start + self.count


@dataclass
class Span:
    """What one run reads and writes. Rows of one token come first, as neighbours."""

    first: int
    singles: int
    length: int
    """Slots that the longest of these fills, and a few more."""
    row_N: Tensor
    position_N: Tensor
    parts: Sequence[Part]
    reaches: Sequence[Reach]
    _masks: dict[object, Tensor] = field(default_factory=dict)

    def of_singles(self, layer: int, like: Tensor) -> Tensor:
        """(B, 1, 1, S), to be added to scores."""
        reach = self.reaches[layer]
        if reach not in self._masks:
            position_B1 = self.position_N[: self.singles, None]
            seen_BS = _seen(reach, position_B1, torch.arange(self.length, device=position_B1.device))
            self._masks[reach] = torch.zeros((), dtype=like.dtype, device=like.device).masked_fill(
                ~seen_BS, torch.finfo(like.dtype).min
            )[:, None, None]
        return self._masks[reach]

    def of_part(self, layer: int, part: Part) -> Tensor | None:
        """(T, S): what each token may see; None where that is all up to itself, and nothing came before."""
        reach = self.reaches[layer]
        if part.start == 0 and (reach.width == 0 or reach.width >= part.count):
            return None
        if (reach, part) not in self._masks:
            position_T1 = self.position_N[part.offset : part.offset + part.count, None]
            self._masks[reach, part] = _seen(reach, position_T1, torch.arange(part.end, device=position_T1.device))
        return self._masks[reach, part]


def _seen(reach: Reach, position: Tensor, slot_S: Tensor) -> Tensor:
    seen = slot_S <= position
    if reach.kind == "sliding_attention" and reach.width:
        return seen & (slot_S > position - reach.width)
    if reach.kind == "chunked_attention" and reach.width:
        return seen & (slot_S // reach.width == position // reach.width)
    return seen


_SPAN: ContextVar[Span] = ContextVar("athanor_span")


@contextmanager
def attending(config: PreTrainedConfig, span: Span) -> Iterator[None]:
    """The model of this config attends by `span` while the block lasts, and as it was loaded afterwards."""
    text = config.get_text_config()
    before, token = text._attn_implementation, _SPAN.set(span)
    text._attn_implementation = NAME
    try:
        yield
    finally:
        text._attn_implementation = before
        _SPAN.reset(token)


def packed_attention(
    module: torch.nn.Module,
    query_1HND: Tensor,
    key_RKSD: Tensor,
    value_RKSD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """As `transformers` calls it: keys and values are what `Slots.update` gave. Returns (1, N, H, D)."""
    if attention_mask is not None or any(others.get(name) is not None for name in _UNKNOWN):
        raise NotImplementedError(f"{type(module).__name__} attends by more than keys and values")
    span, layer = _SPAN.get(), int(module.layer_idx)  # type: ignore[arg-type]
    scale = query_1HND.shape[-1] ** -0.5 if scaling is None else scaling
    found = []
    if span.singles:
        rows = slice(span.first, span.first + span.singles)
        query_BH1D = query_1HND[0, :, : span.singles].transpose(0, 1)[:, :, None]
        keys, values = key_RKSD[rows, :, : span.length], value_RKSD[rows, :, : span.length]
        mask = span.of_singles(layer, query_1HND)
        found.append(_weighted(query_BH1D, keys, values, mask, scale, softcap).permute(2, 0, 1, 3))
    for part in span.parts:
        query_1HTD = query_1HND[:, :, part.offset : part.offset + part.count]
        keys, values = (each[part.row : part.row + 1, :, : part.end] for each in (key_RKSD, value_RKSD))
        found.append(_of_part(query_1HTD, keys, values, span.of_part(layer, part), scale, softcap).transpose(1, 2))
    return torch.cat(found, dim=1) if len(found) > 1 else found[0], None


def _of_part(
    query_1HTD: Tensor, keys: Tensor, values: Tensor, seen_TS: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """(1, H, T, D)"""
    if softcap is None:
        return scaled_dot_product_attention(
            query_1HTD, keys, values, attn_mask=seen_TS, is_causal=seen_TS is None, scale=scale, enable_gqa=True
        )
    if seen_TS is None:
        seen_TS = torch.ones(keys.shape[2], keys.shape[2], dtype=torch.bool, device=keys.device).tril()
    lowest = torch.finfo(query_1HTD.dtype).min
    mask_TS = torch.zeros((), dtype=query_1HTD.dtype, device=keys.device).masked_fill(~seen_TS, lowest)
    return _weighted(query_1HTD, keys, values, mask_TS, scale, softcap)


def _weighted(
    query_BHTD: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """By products over the heads of keys, which are read once for all the heads that share them. (B, H, T, D)"""
    rows, heads, tokens, size = query_BHTD.shape
    groups = heads // keys.shape[1]
    query = (query_BHTD * scale).reshape(rows, keys.shape[1], groups * tokens, size)
    scores = query @ keys.transpose(-1, -2)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    shape = scores.shape
    scores = scores.view(*shape[:2], groups, tokens, shape[-1]) + (mask[:, :, None] if mask.dim() == 4 else mask)
    weights_BKGTS = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    return (weights_BKGTS.view(shape) @ values).reshape(rows, heads, tokens, values.shape[-1])


AttentionInterface.register(NAME, packed_attention)
