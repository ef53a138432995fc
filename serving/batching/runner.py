"""Runs the model on new tokens of some rows, whatever each of them has behind it. Knows nothing of requests or text.

Two ways, chosen by trying: `SlottedRunner` runs the rows together over one rectangle of slots. `SeparateRunner` gives
each row the cache that `transformers` itself makes for the model, and runs one after the other: for models whose state
is more than keys and values (Mamba and its kin), which do not take a mask of ours (ALiBi), or whose rotary frequencies
follow the longest row of a run (dynamic NTK, LongRoPE).
Shapes: B rows, T new tokens of the longest row, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from serving.batching.cache import Segment, Slots, Span
from serving.batching.masks import Windows, masks, windows
from serving.errors import ModelDirectoryError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
_TOKENS_ALIKE = 16
"""What a run reads is rounded up to this, so that shapes, and what is allocated for them, repeat."""
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Relative; half precision has 0.05."""


class Runner(Protocol):
    """Rows of tokens that the model has seen. Rows are numbered from 0 and stay together."""

    @property
    def splits_prompts(self) -> bool:
        """A prompt may come in parts, and one row may begin as another did."""

    def reserve(self, rows: int, length: int) -> None:
        """There will be so many rows, none longer than this."""

    def run(self, first: int, chunks: Sequence[Sequence[int]], starts: Sequence[int], *, keep: int) -> Tensor:
        """Put tokens on rows `first`, `first + 1`..., each row having `starts` tokens before.

        Returns (B, keep, V): the logits of the last `keep` tokens of each row, on the right.
        """

    def move(self, source: int, target: int, length: int) -> None: ...

    def swap(self, one: int, other: int, length: int) -> None: ...

    def clear(self, row: int) -> None:
        """What the row holds may be no numbers; nothing of that may stay."""

    def release(self, row: int) -> None:
        """Nobody has this row."""

    def read(self, row: int, length: int) -> Segment: ...

    def fill(self, row: int, segment: Segment, length: int) -> None: ...


def choose_runner(model: PreTrainedModel, *, bound: int, max_rows: int) -> Runner:
    """The fast way if a trial shows that it computes what the model computes, else the slow one if that does."""
    found, name = windows(model.config), type(model).__name__
    takes_masks = model.config._attn_implementation in ("sdpa", "eager")
    may_share = takes_masks and not _moving_ropes(model)
    if found and may_share and _agrees(model, SlottedRunner(model, found, bound=2 * 8, max_rows=2)):
        return SlottedRunner(model, found, bound=bound, max_rows=max_rows)
    if not _agrees(model, SeparateRunner(model)):
        raise ModelDirectoryError(f"{name} cannot be served: with a cache it computes something else than without")
    logger.warning("%s cannot share one cache among requests; they will run one by one", name)
    return SeparateRunner(model)


class SlottedRunner:
    """All rows of a run in one call of the model."""

    splits_prompts = True

    def __init__(self, model: PreTrainedModel, found: Windows, *, bound: int, max_rows: int) -> None:
        self._model = model
        self._windows = found
        self._device, self._dtype = model.device, model.dtype  # asked once: the model looks through its parameters
        self._slots = Slots(model.config.get_text_config().num_hidden_layers, bound=bound, max_rows=max_rows)
        self.reserve, self.move, self.swap = self._slots.reserve, self._slots.move, self._slots.swap
        self.clear, self.read, self.fill = self._slots.clear, self._slots.read, self._slots.fill

    def release(self, row: int) -> None:
        """The next one writes over it."""

    @torch.inference_mode()
    def run(self, first: int, chunks: Sequence[Sequence[int]], starts: Sequence[int], *, keep: int) -> Tensor:
        input_BT, position_BT = self._place(first, chunks, starts)
        logits: Tensor = self._model(
            input_ids=input_BT,
            attention_mask=masks(self._windows, position_BT, self._slots.span.length, self._dtype),
            position_ids=position_BT,
            past_key_values=self._slots,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits

    def _place(self, first: int, chunks: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Token ids and positions, padded on the left; padding sees the first slot, and is written nowhere."""
        device, slots = self._device, self._slots.shape[1]
        width = max(map(len, chunks))
        ends = [start + len(chunk) for start, chunk in zip(starts, chunks, strict=True)]
        length = min(slots, -(-max(ends) // _TOKENS_ALIKE) * _TOKENS_ALIKE)
        ids = [[0] * (width - len(chunk)) + list(chunk) for chunk in chunks]
        end_B1 = torch.tensor(ends, device=device)[:, None]
        position_BT = end_B1 + torch.arange(-width, 0, device=device)
        row_B1 = torch.arange(first, first + len(chunks), device=device)[:, None]
        target_N, source_N = (position_BT + row_B1 * slots).flatten(), None
        if any(len(chunk) < width for chunk in chunks):
            start_B1 = torch.tensor(starts, device=device)[:, None]
            source_N = (position_BT >= start_B1).flatten().nonzero()[:, 0]
            target_N = target_N[source_N]
            position_BT = torch.where(position_BT >= start_B1, position_BT, 0)
        self._slots.span = Span(first, len(chunks), length, target_N, source_N)
        return torch.tensor(ids, device=device), position_BT


class SeparateRunner:
    """Row after row, each with a cache of its own."""

    splits_prompts = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        takes = inspect.signature(model.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in takes else "past_key_values"
        self._caches: dict[int, DynamicCache] = {}
        self._ropes = _moving_ropes(model)

    def reserve(self, rows: int, length: int) -> None:
        """Nothing is shared, so nothing is laid out beforehand; the bound on tokens is kept by admission."""

    @torch.inference_mode()
    def run(self, first: int, chunks: Sequence[Sequence[int]], starts: Sequence[int], *, keep: int) -> Tensor:
        rows = [self._run_one(first + row, *each, keep) for row, each in enumerate(zip(chunks, starts, strict=True))]
        return torch.stack(rows)

    def _run_one(self, row: int, chunk: Sequence[int], start: int, keep: int) -> Tensor:
        if start == 0:
            self._caches[row] = DynamicCache(config=self._model.config)
        for rope in self._ropes:
            _rewind(rope)
        output = self._model(
            input_ids=torch.tensor([list(chunk)], device=self._model.device),
            use_cache=True,
            logits_to_keep=min(keep, len(chunk)),
            **{self._cache_name: self._caches[row]},
        )
        logits_TV: Tensor = output.logits[0]
        return torch.nn.functional.pad(logits_TV, (0, 0, keep - len(logits_TV), 0))

    def move(self, source: int, target: int, length: int) -> None:  # noqa: ARG002
        self._caches.pop(target, None)
        if (cache := self._caches.pop(source, None)) is not None:
            self._caches[target] = cache

    def swap(self, one: int, other: int, length: int) -> None:  # noqa: ARG002
        held = {
            target: self._caches.pop(source)
            for source, target in ((one, other), (other, one))
            if source in self._caches
        }
        self._caches.update(held)

    def clear(self, row: int) -> None:
        self._caches.pop(row, None)

    release = clear

    def read(self, row: int, length: int) -> Segment:
        raise NotImplementedError("such a state cannot be cut; `splits_prompts` says so")

    def fill(self, row: int, segment: Segment, length: int) -> None:
        raise NotImplementedError("such a state cannot be cut; `splits_prompts` says so")


def _moving_ropes(model: PreTrainedModel) -> list[nn.Module]:
    """Rotary embeddings that choose their frequencies anew by the greatest position of each run."""
    return [
        module
        for module in model.modules()
        if any("dynamic" in kind or kind == "longrope" for kind in _rope_kinds(module).values())
    ]


def _rope_kinds(module: nn.Module) -> dict[str, str]:
    """By the prefix of the names under which the module keeps what belongs to a kind of layer."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, dict):
        return {f"{layer}_": str(kind) for layer, kind in kinds.items()}
    return {"": str(kinds)} if kinds else {}


def _rewind(rope: nn.Module) -> None:
    """Dynamic frequencies grow with the longest text so far; the next row must not begin with another one's."""
    for prefix, kind in _rope_kinds(rope).items():
        if "dynamic" in kind:
            setattr(rope, f"{prefix}inv_freq", getattr(rope, f"{prefix}original_inv_freq").clone())
            setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)


@torch.inference_mode()
def _agrees(model: PreTrainedModel, runner: Runner) -> bool:
    """Two rows of unequal length and one step behind them, against the model on each of them alone."""
    limit = model.get_input_embeddings().num_embeddings
    rows = [[(7 * at + 3) % limit for at in range(6)], [(5 * at + 1) % limit for at in range(3)]]
    try:
        runner.reserve(2, 8)
        if runner.splits_prompts:
            runner.run(0, [row[:-2] for row in rows], [0, 0], keep=1)
        seen = [len(row) - 2 if runner.splits_prompts else 0 for row in rows]
        runner.run(0, [row[at:-1] for row, at in zip(rows, seen, strict=True)], seen, keep=1)
        together = runner.run(0, [row[-1:] for row in rows], [len(row) - 1 for row in rows], keep=1)[:, -1]
        alone = torch.stack([_last_logits(model, row) for row in rows])
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        logger.info("the trial of %s failed: %s", type(model).__name__, error)
        return False
    allowed = _TOLERANCE.get(alone.dtype, 0.05) * float(alone.abs().max())
    return float((together - alone).abs().max()) <= allowed


def _last_logits(model: PreTrainedModel, row: Sequence[int]) -> Tensor:
    ids = torch.tensor([list(row)], device=model.device)
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
    return logits
