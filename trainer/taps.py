"""Inner values of one forward pass, by name, at the learned positions only: nothing else is kept.

`hidden:3` is what layer 3 gives (0: the embeddings), `hidden:last` what the model gives, after its final norm, [N, D].
`scores:3` are the attention scores of layer 3 before the softmax, [N, H, T], `-inf` where a position may not look.
`values:3` are the scaled products of its value vectors, masked alike: relations of MiniLM, arXiv 2002.10957.

Shapes: N learned positions, D hidden size, H heads, T positions of a row, B rows, S size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from trainer.attention import attention
from trainer.batch import Batch
from trainer.errors import UserError
from trainer.models import hidden_at_rows
from trainer.wanted import LAST_HIDDEN, Shape

_OPEN: ContextVar[Taps | None] = ContextVar("taps", default=None)
_PLAIN = "sdpa"
_TAPPED = "athanor_tapped"


@dataclass
class Taps:
    """Collects what one forward pass is asked for."""

    batch: Batch
    names: tuple[str, ...]
    found: dict[str, Tensor] = field(default_factory=dict)

    def hidden(self, layer: int, hidden_BTD: Tensor) -> None:
        self._keep(f"hidden:{layer}", lambda: hidden_BTD.flatten(0, 1)[self.batch.rows_N])

    def attention(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> None:
        """`window`: how many positions up to its own a position looks at, where not at all."""
        plain = 1.0 / math.sqrt(value.shape[-1])
        self._keep(f"scores:{layer}", lambda: self._products(query, key, scale, window))
        self._keep(f"values:{layer}", lambda: self._products(value, value, plain, window))

    def _keep(self, name: str, compute: Callable[[], Tensor]) -> None:
        if name in self.names:
            self.found[name] = compute()

    def _products(self, asking_BHTS: Tensor, asked_BGTS: Tensor, scale: float, window: int | None) -> Tensor:
        """Row by row, so that only learned positions ask; grouped heads are repeated to as many as ask."""
        repeats = asking_BHTS.shape[1] // asked_BGTS.shape[1]
        segments, length = self.batch.segment_ids_BT, self.batch.segment_ids_BT.shape[1]
        pieces = []
        for row in range(len(segments)):
            first = row * length
            inside = (self.batch.rows_N >= first) & (self.batch.rows_N < first + length)
            places_n = self.batch.rows_N[inside] - first
            asked_HTS = asked_BGTS[row].repeat_interleave(repeats, dim=0)
            products_nHT = (asking_BHTS[row][:, places_n] @ asked_HTS.transpose(1, 2)).transpose(0, 1) * scale
            back_nT = places_n[:, None] - torch.arange(length, device=places_n.device)[None]
            unseen_nT = (back_nT < 0) | (segments[row][None] != segments[row][places_n][:, None])
            if window is not None:
                unseen_nT |= back_nT >= window
            pieces.append(products_nHT.masked_fill(unseen_nT[:, None], -torch.inf))
        return torch.cat(pieces)


def tap_attention(model: PreTrainedModel) -> None:
    """Makes the attention of a model readable; what it computes stays that of torch's own kernel.

    UserError for a family whose attention is more than scores, softmax and values.
    """
    if model.config._attn_implementation == _TAPPED:
        return
    if not model._supports_sdpa:
        what = f"the attention of {type(model).__name__} does more than torch's own kernel (soft-capping, sinks)"
        mend = "leave attention and value_relation out of objective.intermediate_matches"
        raise UserError("MODEL_UNSUPPORTED", f"{what} and cannot be imitated; {mend}")
    AttentionInterface.register(_TAPPED, _tapped_attention)
    AttentionMaskInterface.register(_TAPPED, ALL_MASK_ATTENTION_FUNCTIONS[_PLAIN])
    model.set_attn_implementation(_TAPPED)


def reads_attention(names: Iterable[str]) -> bool:
    """Whether the model must be made ready by `tap_attention`."""
    return any(name.startswith(("scores:", "values:")) for name in names)


def tapped(model: PreTrainedModel, batch: Batch, names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """[N, D] final hidden states at the learned positions, and what `names` ask for; UserError for an unknown layer."""
    inner = tuple(name for name in names if name != LAST_HIDDEN)
    with _open(model, Taps(batch, inner)) as taps:
        hidden_ND = hidden_at_rows(model, batch)
    missing = [name for name in inner if name not in taps.found]
    if missing:
        raise UserError("LAYER_UNKNOWN", f"{type(model).__name__} gives no {', '.join(missing)}")
    return hidden_ND, taps.found | ({LAST_HIDDEN: hidden_ND} if LAST_HIDDEN in names else {})


@contextmanager
def _open(model: PreTrainedModel, taps: Taps) -> Iterator[Taps]:
    """Within the block, forward passes of the model fill `taps`."""
    if not taps.names:
        yield taps
        return
    token = _OPEN.set(taps)
    with ExitStack() as hooks:
        hooks.callback(_OPEN.reset, token)
        for at, layer in enumerate(layers_of(model)):
            hooks.callback(layer.register_forward_pre_hook(_before(taps, at), with_kwargs=True).remove)
        yield taps


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers; UserError for a family that does not keep them in one list."""
    wanted = model.config.get_text_config().num_hidden_layers
    body = getattr(model, str(model.base_model_prefix))
    found = [one for one in body.modules() if isinstance(one, nn.ModuleList) and len(one) == wanted]
    if not found:
        raise UserError("MODEL_UNSUPPORTED", f"{type(model).__name__} has no list of {wanted} layers to look into")
    return found[0]


def shape_of(model: PreTrainedModel) -> Shape:
    config = model.config.get_text_config()
    return Shape(int(config.hidden_size), int(config.num_hidden_layers))


def _before(taps: Taps, layer: int) -> Callable[..., None]:
    """What goes into layer i + 1 is what layer i gave; the last layer's is the model's own output."""

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taps.hidden(layer, args[0] if args else kwargs["hidden_states"])

    return keep


def _tapped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    taps = _OPEN.get()
    if taps is not None:
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        layer, window = int(module.layer_idx) + 1, kwargs.get("sliding_window")  # type: ignore[arg-type]
        taps.attention(layer, query, key, value, scale, window)
    return attention(module, query, key, value, attention_mask, **kwargs)
