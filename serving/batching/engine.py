"""`Engine` over a causal model of `transformers`: callers submit from their event loops, one thread steps the batch.

Knows nothing of HTTP, chat or Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread
from typing import TYPE_CHECKING

from serving.batching.batch import Unobserved
from serving.batching.lanes import Lanes
from serving.batching.policy import Limits
from serving.batching.streams import Outbox
from serving.batching.work import Generation, Scoring, Vocabulary, failed
from serving.detokenizer import remembering
from serving.engine import GenerationRequest, Load, Observer, Scored, TokenStream
from serving.errors import InvalidRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST_FAILURES = 8
"""Steps in a row that may break before the engine counts as broken itself."""


class TransformersEngine:
    """Continuous batching; see `docs/serving.md` for what it does and what bounds it."""

    def __init__(
        self,
        model: PreTrainedModel,
        decode: Callable[[Sequence[int]], str],
        *,
        context_length: int,
        num_tokens: int,
        end_ids: frozenset[int],
        limits: Limits | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`num_tokens`: entries of the vocabulary; rows that a head has beyond them are never chosen."""
        self._vocabulary = Vocabulary(remembering(decode), num_tokens, end_ids, model.device)
        self._num_inputs = model.get_input_embeddings().num_embeddings
        self._lanes = Lanes(
            model, limits or Limits(), context_length, num_tokens=num_tokens, observer=observer or Unobserved()
        )
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def context_length(self) -> int:
        """The model's, or what the cache holds if that is less."""
        return self._lanes.longest

    @property
    def load(self) -> Load:
        return self._lanes.load

    @property
    def is_healthy(self) -> bool:
        """Also where nobody asks any more: what broke time and again is not well because it rests."""
        return self._thread.is_alive() and self._lanes.failures < _MOST_FAILURES and self._lanes.sound

    def submit(self, request: GenerationRequest) -> TokenStream:
        if request.max_tokens < 1:
            raise InvalidRequest("an answer has at least one token", param="max_tokens")
        self._check(request.prompt_ids, len(request.prompt_ids) + request.max_tokens)
        self._check(request.given_ids or request.prompt_ids, len(request.given_ids))
        work = Generation(request, self._vocabulary, self._lanes.stir)
        self._lanes.join(work)
        return work.stream

    async def score(self, token_ids: Sequence[int], *, start: int = 1, top_k: int = 0) -> Scored:
        self._check(token_ids, len(token_ids))
        if not 1 <= start < len(token_ids):
            raise InvalidRequest(f"start must be from 1 to {len(token_ids) - 1}, before the last token", param="start")
        work = Scoring(token_ids, start, top_k, self._lanes.stir)
        self._lanes.join(work)
        try:
            return await anext(work.stream)
        finally:
            await work.stream.aclose()

    def close(self) -> None:
        outbox = Outbox()
        for work in self._lanes.close():
            work.fail(outbox, failed())
        outbox.send()
        self._thread.join()

    def _check(self, tokens: Sequence[int], most: int) -> None:
        """What the API has checked in its own words."""
        if not tokens or min(tokens) < 0 or max(tokens) >= self._num_inputs:
            raise InvalidRequest(f"token ids must be from 0 to {self._num_inputs - 1}, and at least one of them")
        if most > self.context_length:
            raise InvalidRequest(
                f"{most} tokens are more than the {self.context_length} that fit", code="context_length_exceeded"
            )

    def _run(self) -> None:
        """The thread: it ends with the engine, and whatever breaks ends no more than the requests that are in it."""
        try:
            while not self._lanes.closed:
                self._lanes.wait()
                self._lanes.step()
        finally:
            self._lanes.fail_all()
