"""Attention on a CPU in bfloat16: torch's own forward, and a backward by matrix products for short rows.

Torch's fused kernel is quick forwards and slow to differentiate there: its backward takes 2 to 5 times as long as the
same five products written out. Nothing of the size T x T is kept between the two.

Shapes: B rows, H heads, G heads of keys and values, T positions, S size of a head, P = B * H pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_FUSED = "sdpa"
_NAME = "athanor_short_rows"
_LONGEST_ROW = 512
"""Positions. At 512 the products were twice as fast; at 1,792 the fused kernel, which skips hidden halves, won."""
_ELEMENTS = 1 << 20
"""Pairs x T x T at once: 2 MiB in bfloat16, for the caches."""
_SPECIAL = ("softcap", "position_bias", "s_aux", "cache")
"""What some families ask for besides softmax(Q K^T) V."""


def choose_attention(model: PreTrainedModel, max_length: int, dtype: torch.dtype) -> None:
    """Takes this attention where it was measured to be the faster one to learn with, and leaves it alone elsewhere."""
    short = max_length <= _LONGEST_ROW and dtype == torch.bfloat16
    if torch.cuda.is_available() or not short or not model._supports_sdpa:
        return
    AttentionInterface.register(_NAME, attention)
    AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS[_FUSED])
    model.set_attn_implementation(_NAME)


def attention(
    module: nn.Module,
    query_BHTS: Tensor,
    key_BGTS: Tensor,
    value_BGTS: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """As transformers asks for it, [B, T, H, S]; whatever the short way does not cover is the fused kernel's."""
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    special = dropout or not is_causal or any(kwargs.get(name) is not None for name in _SPECIAL)
    if special or not _covered(query_BHTS, key_BGTS, value_BGTS, attention_mask):
        fused: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS[_FUSED](
            module, query_BHTS, key_BGTS, value_BGTS, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return fused
    repeats = query_BHTS.shape[1] // key_BGTS.shape[1]
    if repeats > 1:
        key_BGTS, value_BGTS = (one.repeat_interleave(repeats, dim=1) for one in (key_BGTS, value_BGTS))
    scale = query_BHTS.shape[-1] ** -0.5 if scaling is None else scaling
    found: Tensor = _ShortRows.apply(query_BHTS, key_BGTS, value_BGTS, attention_mask, scale)  # type: ignore[no-untyped-call]
    return found.transpose(1, 2).contiguous(), None


def _covered(query_BHTS: Tensor, key_BGTS: Tensor, value_BGTS: Tensor, mask_B1TT: Tensor | None) -> bool:
    """Causal attention of whole short rows in bfloat16 on a CPU, to be differentiated."""
    length, size = query_BHTS.shape[2:]
    return (
        torch.is_grad_enabled()
        and query_BHTS.device.type == "cpu"
        and query_BHTS.dtype == torch.bfloat16
        and length <= _LONGEST_ROW
        and key_BGTS.shape[2:] == value_BGTS.shape[2:] == (length, size)
        and (mask_B1TT is None or (mask_B1TT.dtype == torch.bool and mask_B1TT.shape[1:] == (1, length, length)))
    )


class _ShortRows(torch.autograd.Function):
    """softmax(scale Q K^T) V under a mask (True: may look), or causal without one."""

    @staticmethod
    def forward(
        ctx: Any, query_BHTS: Tensor, key_BHTS: Tensor, value_BHTS: Tensor, mask_B1TT: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query_BHTS, key_BHTS, value_BHTS, mask_B1TT)
        ctx.scale = scale
        return nn.functional.scaled_dot_product_attention(
            query_BHTS, key_BHTS, value_BHTS, attn_mask=mask_B1TT, is_causal=mask_B1TT is None, scale=scale
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query_BHTS, key_BHTS, value_BHTS, mask_B1TT = ctx.saved_tensors
        rows, heads, length, _ = query_BHTS.shape
        gradient_PTS, query_PTS, key_PTS, value_PTS = (
            one.reshape(rows * heads, length, -1) for one in (grads[0], query_BHTS, key_BHTS, value_BHTS)
        )
        hidden_ATT = _hidden(mask_B1TT, length, query_PTS.dtype)
        found = [torch.empty_like(one) for one in (query_PTS, key_PTS, value_PTS)]
        at_once = max(1, _ELEMENTS // length**2)
        for first in range(0, rows * heads, at_once):
            part = slice(first, first + at_once)
            query, key, gradient = query_PTS[part], key_PTS[part], gradient_PTS[part]
            rows_of_part = torch.arange(first, first + len(query)) // heads % len(hidden_ATT)
            scores = torch.baddbmm(hidden_ATT[rows_of_part], query, key.transpose(1, 2), alpha=ctx.scale)
            probs = scores.softmax(dim=2)
            torch.bmm(probs.transpose(1, 2), gradient, out=found[2][part])
            slope = torch.bmm(gradient, value_PTS[part].transpose(1, 2))
            slope = torch.ops.aten._softmax_backward_data(slope, probs, 2, probs.dtype).mul_(ctx.scale)
            torch.bmm(slope, key, out=found[0][part])
            torch.bmm(slope.transpose(1, 2), query, out=found[1][part])
        by_query, by_key, by_value = (one.view(rows, heads, length, -1) for one in found)
        return by_query, by_key, by_value, None, None


def _hidden(mask_B1TT: Tensor | None, length: int, dtype: torch.dtype) -> Tensor:
    """[B or 1, T, T]: zero where a position may look, else so little that no probability is left."""
    seen = torch.ones(1, 1, length, length, dtype=torch.bool).tril_() if mask_B1TT is None else mask_B1TT
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min / 2)[:, 0]
