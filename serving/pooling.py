"""`PoolingEngine` over a model of `transformers` that reads a whole text at once: probabilities of labels, or a vector.

Texts that wait are batched by length under a budget of tokens, by one thread. Knows nothing of text or HTTP.
Shapes: B rows, T tokens of the longest, D size of a vector.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Thread
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from serving.engine import Load
from serving.errors import EngineFailed, InvalidRequest, Overloaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pooling = Literal["mean", "cls", "last", "max"]
Vector = tuple[float, ...]
logger = logging.getLogger(__name__)
_MOST_FAILURES = 8
"""Runs in a row that may break before the engine counts as broken itself."""


@dataclass(frozen=True)
class PoolingOptions:
    """How a text becomes numbers, and what an engine may use."""

    labels: tuple[str, ...] = ()
    """Of a model that classifies; without any the model embeds."""
    exclusive: bool = True
    """One label is true of a text, so probabilities add up to 1."""
    pooling: Pooling = "mean"
    normalized: bool = False
    """Vectors have length 1."""
    pad_id: int | None = None
    """Without one, every text runs alone."""
    max_batch_tokens: int = 1 << 13
    """Of one run of the model, padding included; a text that is longer runs alone."""
    max_waiting: int = 1024
    """Texts."""


@dataclass(eq=False)
class _Text:
    """One text on its way."""

    ids: tuple[int, ...]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Vector]

    def settle(self, result: Vector | Exception) -> None:
        """From any thread; a loop that is gone has nobody left who waits."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._settle, result)

    def _settle(self, result: Vector | Exception) -> None:
        if self.answer.done():
            return
        if isinstance(result, Exception):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


class TransformersPoolingEngine:
    """Classification or embedding, one of the two."""

    def __init__(self, model: PreTrainedModel, options: PoolingOptions, *, context_length: int) -> None:
        self._model = model
        self._options = options
        self._context_length = context_length
        self._waiting: deque[_Text] = deque()
        self._changed = Condition()
        self._running = 0
        self._closed = False
        self._failures = 0
        self._thread = Thread(target=self._run, name="pooling", daemon=True)
        self._thread.start()

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def load(self) -> Load:
        with self._changed:
            return Load(self._running, len(self._waiting))

    @property
    def is_healthy(self) -> bool:
        return self._thread.is_alive() and self._failures < _MOST_FAILURES

    @property
    def labels(self) -> tuple[str, ...]:
        return self._options.labels

    @property
    def exclusive(self) -> bool:
        return self._options.exclusive

    async def classify(self, texts: Sequence[Sequence[int]]) -> list[Vector]:
        if not self._options.labels:
            raise InvalidRequest("this model does not classify; it embeds", param="model")
        return await self._answer(texts)

    async def embed(self, texts: Sequence[Sequence[int]]) -> list[Vector]:
        if self._options.labels:
            raise InvalidRequest("this model does not embed; it classifies", param="model")
        return await self._answer(texts)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            abandoned = [*self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for text in abandoned:
            text.settle(EngineFailed("the engine is closed"))
        self._thread.join()

    async def _answer(self, texts: Sequence[Sequence[int]]) -> list[Vector]:
        loop, vocabulary = asyncio.get_running_loop(), self._model.get_input_embeddings().num_embeddings
        for ids in texts:
            if not ids or min(ids) < 0 or max(ids) >= vocabulary:
                raise InvalidRequest(f"token ids must be from 0 to {vocabulary - 1}, and at least one", param="input")
            if len(ids) > self._context_length:
                raise InvalidRequest(
                    f"this model reads {self._context_length} tokens; the text has {len(ids)}",
                    param="input",
                    code="context_length_exceeded",
                )
        waiting = [_Text(tuple(ids), loop, loop.create_future()) for ids in texts]
        self._join(waiting)
        try:
            return [await text.answer for text in waiting]
        finally:
            for text in waiting:
                text.answer.cancel()

    def _join(self, texts: Sequence[_Text]) -> None:
        with self._changed:
            if self._closed:
                raise EngineFailed("the engine is closed")
            if len(self._waiting) + len(texts) > self._options.max_waiting:
                raise Overloaded(f"{len(self._waiting)} texts are waiting already; try again in a moment")
            self._waiting.extend(texts)
            self._changed.notify_all()

    def _run(self) -> None:
        """The thread: all that waits, by length, and then whatever came meanwhile."""
        while texts := self._take():
            for group in by_length(texts, self._options.max_batch_tokens, padded=self._options.pad_id is not None):
                self._serve(group)

    def _take(self) -> list[_Text]:
        """Empty when the engine is closed. Who has gone is left out."""
        with self._changed:
            self._running = 0
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                texts = [text for text in self._waiting if not text.answer.cancelled()]
                self._waiting.clear()
                self._running = len(texts)
                if texts or self._closed:
                    return texts

    def _serve(self, group: Sequence[_Text]) -> None:
        """Together; where that breaks one by one, so that only who broke it fails."""
        results = self._attempt(group)
        if results is None and len(group) > 1:
            for text in group:
                self._serve([text])
            return
        self._failures = self._failures + 1 if results is None else 0
        for text, result in zip(group, results or [None], strict=True):
            text.settle(EngineFailed("the engine could not finish this request") if result is None else result)

    def _attempt(self, group: Sequence[_Text]) -> list[Vector | None] | None:
        try:
            return self._compute([text.ids for text in group])
        except Exception:  # the process boundary: logged, and the thread goes on
            logger.exception("the model broke on %d texts", len(group))
            return None

    @torch.inference_mode()
    def _compute(self, texts: Sequence[tuple[int, ...]]) -> list[Vector | None]:
        """None for a text whose answer is no numbers."""
        width, pad_id = max(map(len, texts)), self._options.pad_id or 0
        device = self._model.device
        ids_BT = torch.tensor([[*ids, *[pad_id] * (width - len(ids))] for ids in texts], device=device)
        mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in texts], device=device)
        output = self._model(input_ids=ids_BT, attention_mask=mask_BT)
        if self._options.labels:
            logits_BL = output.logits.float()
            found = logits_BL.softmax(-1) if self._options.exclusive else logits_BL.sigmoid()
        else:
            found = pooled(output.last_hidden_state.float(), mask_BT, self._options.pooling)
            found = torch.nn.functional.normalize(found, dim=-1) if self._options.normalized else found
        sound_B = found.isfinite().all(-1).tolist()
        if not all(sound_B):
            logger.error("the model's answer is no numbers for %d texts of %d", sound_B.count(False), len(texts))
        return [tuple(row) if sound else None for row, sound in zip(found.tolist(), sound_B, strict=True)]


def pooled(hidden_BTD: Tensor, mask_BT: Tensor, pooling: Pooling) -> Tensor:
    """(B, D): one vector for each text, padding left out (the conventions of sentence-transformers)."""
    if pooling == "cls":
        return hidden_BTD[:, 0]
    if pooling == "last":
        last_B = mask_BT.sum(-1) - 1
        return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last_B]
    if pooling == "max":
        return hidden_BTD.masked_fill(mask_BT[..., None] == 0, -torch.inf).amax(1)
    weight_BT1 = mask_BT[..., None].to(hidden_BTD.dtype)
    return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)


def by_length(texts: Sequence[_Text], budget: int, *, padded: bool = True) -> Iterator[list[_Text]]:
    """Groups of like length, of which rows times the longest is within the budget, or which are one text."""
    group: list[_Text] = []
    for text in sorted(texts, key=lambda text: len(text.ids)):  # so the longest of a group is its last
        full = (len(group) + 1) * len(text.ids) > budget
        if group and (full or not padded):
            yield group
            group = []
        group.append(text)
    if group:
        yield group
