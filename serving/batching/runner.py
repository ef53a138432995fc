"""Runs the model on new tokens of some rows, whatever each of them has behind it. Knows nothing of requests or text.

Two ways, chosen by trying: `PackedRunner` puts the new tokens of all rows in one line, without padding, over one
rectangle of slots. `SeparateRunner` gives each row the cache that `transformers` itself makes for the model, and runs
one after the other: for models whose state is more than keys and values (Mamba and its kin), whose attention is not
`transformers`' common one (ALiBi), or whose rotary frequencies follow the longest row (dynamic NTK, LongRoPE).
Shapes: N new tokens of all rows, V vocabulary.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from serving.batching.attention import Part, Reach, Span, attending, reaches
from serving.batching.cache import Segment, Slots
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

    def run(self, first: int, chunks: Sequence[Sequence[int]], starts: Sequence[int], keep: Sequence[int]) -> Tensor:
        """Put tokens on rows `first`, `first + 1`..., each row having `starts` tokens before.

        Returns (sum of keep, V): the logits of the last `keep` tokens of each row, row after row. Who
        splits prompts may be asked for a run that broke again.
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
    found, name = reaches(model.config), type(model).__name__
    if found and not _moving_ropes(model) and _agrees(model, PackedRunner(model, found, bound=2 * 8, max_rows=2)):
        return PackedRunner(model, found, bound=bound, max_rows=max_rows)
    if not _agrees(model, SeparateRunner(model)):
        raise ModelDirectoryError(f"{name} cannot be served: with a cache it computes something else than without")
    logger.warning("%s cannot share one cache among requests; they will run one by one", name)
    return SeparateRunner(model)


class PackedRunner:
    """All rows of a run in one call of the model."""

    splits_prompts = True

    def __init__(self, model: PreTrainedModel, found: Sequence[Reach], *, bound: int, max_rows: int) -> None:
        self._model = model
        self._reaches = found
        self._device = model.device  # asked once: the model looks through its parameters
        self._slots = Slots(model.config.get_text_config().num_hidden_layers, bound=bound, max_rows=max_rows)
        self.reserve, self.move, self.swap = self._slots.reserve, self._slots.move, self._slots.swap
        self.clear, self.read, self.fill = self._slots.clear, self._slots.read, self._slots.fill

    def release(self, row: int) -> None:
        """The next one writes over it."""

    @torch.inference_mode()
    def run(self, first: int, chunks: Sequence[Sequence[int]], starts: Sequence[int], keep: Sequence[int]) -> Tensor:
        span = self._span(first, [len(chunk) for chunk in chunks], starts)
        self._slots.write_by(span)
        with attending(self._model.config, span):
            logits_1NV: Tensor = self._model(
                input_ids=torch.tensor([list(itertools.chain.from_iterable(chunks))], device=self._device),
                position_ids=span.position_N[None],
                past_key_values=self._slots,
                use_cache=True,
                logits_to_keep=torch.tensor(_kept(map(len, chunks), keep), device=self._device),
            ).logits
        return logits_1NV[0]

    def _span(self, first: int, sizes: Sequence[int], starts: Sequence[int]) -> Span:
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        singles = next((at for at, size in enumerate(sizes) if size > 1), len(sizes))
        offsets = [0, *itertools.accumulate(sizes)]
        rows = range(first, first + len(sizes))
        position_N = [*itertools.chain.from_iterable(map(range, starts, ends))]
        row_N = [row for row, size in zip(rows, sizes, strict=True) for _ in range(size)]
        longest = -(-max(ends[:singles], default=0) // _TOKENS_ALIKE) * _TOKENS_ALIKE
        return Span(
            first=first,
            singles=singles,
            length=min(self._slots.shape[1], longest),
            row_N=torch.tensor(row_N, device=self._device),
            position_N=torch.tensor(position_N, device=self._device),
            parts=[Part(rows[at], offsets[at], sizes[at], starts[at]) for at in range(singles, len(sizes))],
            reaches=self._reaches,
        )


def _kept(sizes: Iterable[int], keep: Sequence[int]) -> list[int]:
    """Which of all new tokens these are."""
    ends = itertools.accumulate(sizes)
    return [at for end, count in zip(ends, keep, strict=True) for at in range(end - count, end)]


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
    def run(self, first: int, chunks: Sequence[Sequence[int]], starts: Sequence[int], keep: Sequence[int]) -> Tensor:
        each = zip(itertools.count(first), chunks, starts, keep, strict=False)
        return torch.cat([self._run_one(*one) for one in each])

    def _run_one(self, row: int, chunk: Sequence[int], start: int, keep: int) -> Tensor:
        if start == 0:
            self._caches[row] = DynamicCache(config=self._model.config)
        for rope in self._ropes:
            _rewind(rope)
        output = self._model(
            input_ids=torch.tensor([list(chunk)], device=self._model.device),
            use_cache=True,
            logits_to_keep=keep,
            **{self._cache_name: self._caches[row]},
        )
        logits_TV: Tensor = output.logits[0]
        return logits_TV

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
    """Two rows of unequal length: in parts, one of them beside a single token, and a step of both behind that.

    Against the model on each of them alone.
    """
    limit = model.get_input_embeddings().num_embeddings
    rows = [[(7 * at + 3) % limit for at in range(7)], [(5 * at + 1) % limit for at in range(6)]]
    cuts = [(0, 0), (5, 3), (6, 5), (7, 6)] if runner.splits_prompts else [(0, 0), (6, 5), (7, 6)]
    try:
        runner.reserve(2, 8)
        for starts, ends in itertools.pairwise(cuts):
            chunks = [row[start:end] for row, start, end in zip(rows, starts, ends, strict=True)]
            together = runner.run(0, chunks, starts, [1, 1])
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
