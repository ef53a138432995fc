"""Batched generation with a causal model of `transformers`: one thread, and streams that lead out of it.

Knows nothing of HTTP, chat or Ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING

from serving.decoding import Batch
from serving.detokenizer import Detokenizer, StopStrings
from serving.engine import Delta, FinishReason, GenerationRequest, Load, Scored, TokenStream
from serving.errors import EngineFailed, Overloaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class TransformersEngine:
    """Batched generation with a causal model of `transformers`.

    A batch has at most `max_batch_size` rows, and rows times the longest of them, prompt and most tokens of the answer
    together, is at most `max_batch_tokens`: so much may its cache grow to. A request that is longer runs alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        decode: Callable[[Sequence[int]], str],
        *,
        context_length: int,
        num_tokens: int,
        end_ids: frozenset[int],
        max_batch_size: int = 32,
        max_batch_tokens: int = 1 << 16,
        max_waiting: int = 256,
    ) -> None:
        self._model = model
        self._decode = decode
        self._context_length = context_length
        self._num_tokens = num_tokens
        self._end_ids = end_ids
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._max_waiting = max_waiting
        self._lock = Lock()
        self._waiting: deque[_Sequence] = deque()
        self._running = 0
        self._closed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def load(self) -> Load:
        with self._lock:
            return Load(self._running, sum(not each.stream.cancelled for each in self._waiting))

    def submit(self, request: GenerationRequest) -> TokenStream:
        sequence = _Sequence(request, self._decode, self._end_ids)
        with self._lock:
            if self._closed:
                raise EngineFailed("the engine is closed")
            self._waiting = deque(each for each in self._waiting if not each.stream.cancelled)
            if len(self._waiting) >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} requests are waiting already; try again in a moment")
            self._waiting.append(sequence)
            turn = _Turn()
            self._thread.submit(self._run, turn).add_done_callback(turn.settle)
        return sequence.stream

    async def score(self, token_ids: Sequence[int], *, start: int = 1, top_k: int = 0) -> Scored:
        raise EngineFailed("this engine cannot score yet")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            abandoned = [*self._waiting]
            self._waiting.clear()
        for sequence in abandoned:
            sequence.stream.fail()
        self._thread.shutdown(wait=True)

    def _run(self, turn: _Turn) -> None:
        """One turn of the thread: everything that waits now, until the last of it is done."""
        turn.sequences = self._take()
        try:
            if turn.sequences:
                self._decode_all(turn.sequences)
        finally:
            self._count(0)

    def _decode_all(self, live: list[_Sequence]) -> None:
        prompts, sampling = [each.prompt_ids for each in live], [each.sampling for each in live]
        batch = Batch(self._model, prompts, sampling, num_tokens=self._num_tokens)
        while live and not self._closed:
            for sequence, token in zip(live, batch.step(), strict=True):
                sequence.push(token)
            live = self._drop_finished(batch, live)
        if live:
            raise EngineFailed("the engine was closed")

    def _take(self) -> list[_Sequence]:
        with self._lock:
            wanted = [each for each in self._waiting if not each.stream.cancelled]
            self._running = self._rows_that_fit(wanted)
            self._waiting = deque(wanted[self._running :])
            return wanted[: self._running]

    def _rows_that_fit(self, wanted: Sequence[_Sequence]) -> int:
        """How many of those that wait make the next batch, in the order in which they came; at least one of any."""
        longest = 0
        for rows, sequence in enumerate(wanted[: self._max_batch_size]):
            longest = max(longest, sequence.most_tokens)
            if rows and (rows + 1) * longest > self._max_batch_tokens:
                return rows
        return min(len(wanted), self._max_batch_size)

    def _drop_finished(self, batch: Batch, live: list[_Sequence]) -> list[_Sequence]:
        rows = [row for row, sequence in enumerate(live) if not (sequence.finished or sequence.stream.cancelled)]
        if rows and len(rows) < len(live):
            batch.keep(rows)
        self._count(len(rows))
        return [live[row] for row in rows]

    def _count(self, running: int) -> None:
        with self._lock:
            self._running = running


class _Sequence:
    """One request in the batch: its tokens become text, and the text goes to its stream."""

    def __init__(
        self, request: GenerationRequest, decode: Callable[[Sequence[int]], str], end_ids: frozenset[int]
    ) -> None:
        self.prompt_ids = request.prompt_ids
        self.sampling = request.sampling
        self.stream = _Stream()
        self.finished = False
        self.most_tokens = len(request.prompt_ids) + request.max_tokens
        self._left = request.max_tokens
        self._end_ids = end_ids
        self._detokenizer = Detokenizer(decode)
        self._stops = StopStrings(request.stop)

    def push(self, token: int) -> None:
        """Take the next token; the end token counts as one and has no text."""
        self._left -= 1
        ended = token in self._end_ids
        last = ended or self._left <= 0
        text = "" if ended else self._detokenizer.push(token)
        piece = self._stops.push(text + self._detokenizer.finish() if last else text)
        text = piece.text if piece.stopped or not last else piece.text + self._stops.finish()
        self.finished = last or piece.stopped
        reason: FinishReason = "stop" if ended or piece.stopped else "length"
        self.stream.put(Delta(text, 1, reason if self.finished else None, (token,)))


class _Stream:
    """Deltas from the engine's thread to the event loop that asked for them."""

    def __init__(self) -> None:
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Delta | EngineFailed] = asyncio.Queue()
        self._ended = False

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Delta:
        if self._ended:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, EngineFailed):
            self._ended = True
            raise item
        self._ended = item.finish_reason is not None
        return item

    async def aclose(self) -> None:
        self._ended = self.cancelled = True

    def put(self, item: Delta | EngineFailed) -> None:
        """From any thread. A loop that is gone has nobody left who would read."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def fail(self) -> None:
        self.put(EngineFailed("the engine could not finish this request"))


class _Turn:
    """The sequences of one turn, so that they learn of it when the turn breaks."""

    def __init__(self) -> None:
        self.sequences: list[_Sequence] = []

    def settle(self, turn: Future[None]) -> None:
        """Called when the turn is over, well or not."""
        if turn.cancelled() or (error := turn.exception()) is None:
            return
        logger.error("a batch of %d requests broke", len(self.sequences), exc_info=error)
        for sequence in self.sequences:
            if not sequence.finished:
                sequence.stream.fail()
