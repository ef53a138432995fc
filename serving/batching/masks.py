"""Which slots each new token may see, made once for a run and added to the scores of attention in every layer.

Shapes: B rows, T new tokens of each, S slots that are seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import get_layer_types_and_kwargs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Windows = Mapping[str, int]
"""The kinds of attention that the layers of a model have, each with its width in tokens; 0 is all."""
_KINDS = ("full_attention", "sliding_attention", "chunked_attention")


def windows(config: PreTrainedConfig) -> Windows | None:
    """None where a layer keeps something else than keys and values of all tokens."""
    kinds, settings = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    if not kinds or any(kind not in _KINDS for kind in kinds):
        return None
    return {kind: each.get("sliding_window") or 0 for kind, each in zip(kinds, settings, strict=True)}


def masks(found: Windows, position_BT: Tensor, length: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """(B, 1, T, S) for a model whose layers are all of one kind, else one for each kind by its name."""
    slot_S = torch.arange(length, device=position_BT.device)
    position_BT1 = position_BT[:, :, None]
    made = {kind: _additive(_seen(kind, width, position_BT1, slot_S), dtype) for kind, width in found.items()}
    return made if len(made) > 1 else next(iter(made.values()))


def _seen(kind: str, width: int, position_BT1: Tensor, slot_S: Tensor) -> Tensor:
    seen_BTS = slot_S <= position_BT1
    if kind == "sliding_attention" and width:
        return seen_BTS & (slot_S > position_BT1 - width)
    if kind == "chunked_attention" and width:
        return seen_BTS & (slot_S // width == position_BT1 // width)
    return seen_BTS


def _additive(seen_BTS: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers rather than yes and no: so eager attention understands it too."""
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=seen_BTS.device)
    return torch.where(seen_BTS, torch.zeros_like(hidden), hidden)[:, None]
