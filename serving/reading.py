"""What a judge asks of a loaded model, beside the requests of its users: how it reads a text, and what it would answer.

A judge has its teacher in its own process and the revisions behind Serve: both are asked by the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.engine import GenerationRequest, Sampling, Scored
from serving.errors import InvalidRequest, ServingError
from serving.pooling_api import input_ids
from serving.prompting import prompt_ids
from serving.schemas import MAX_TIMEOUT_S, ClassifyRequest

if TYPE_CHECKING:
    from serving.backend import BackendRequest
    from serving.engine import Engine, PoolingEngine
    from serving.loading import LoadedModel
    from serving.task_data import Example

_MOST_TEXTS = 16
"""Of a request for labels, the first so many are read."""
_ROOM = 16
"""Tokens that an answer may have beyond twice those of the right one: what is longer is wrong anyhow."""


@dataclass(frozen=True)
class Labels:
    """Of each text, how likely a model finds each label."""

    texts: tuple[Mapping[str, float], ...]
    exclusive: bool
    """One label is true of a text, so probabilities add up to 1; else each stands alone."""


class Reading:
    """Of one loaded model."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    @property
    def classifies(self) -> bool:
        return "classify" in self._model.tasks

    async def prompt_ids(self, request: BackendRequest) -> tuple[int, ...]:
        """A request's prompt as this model reads it; empty where it asks for no text."""
        return prompt_ids(self._model, request)

    async def score(self, token_ids: Sequence[int], *, start: int = 1, top_k: int = 0) -> Scored:
        """How likely it finds the tokens of a text."""
        return await self._engine.score(token_ids, start=start, top_k=top_k)

    async def labels(self, request: BackendRequest) -> Labels:
        """What it makes of the texts of a request that asks for labels."""
        pooling = self._pooling
        body = ClassifyRequest.model_validate_json(request.body)
        texts = input_ids(body, self._model.prompts, pooling.context_length)[:_MOST_TEXTS]
        rows = await pooling.classify(texts)
        return Labels(tuple(dict(zip(pooling.labels, row, strict=True)) for row in rows), pooling.exclusive)

    async def answer(self, example: Example) -> str:
        """The likeliest answer to a labelled example, whole; of a model that classifies, the likeliest label."""
        prompts = self._model.prompts
        if self.classifies:
            (row,) = await self._pooling.classify([prompts.text(example.text, param="prompt")])
            return max(zip(self._pooling.labels, row, strict=True), key=lambda pair: pair[1])[0]
        prompt = prompts.chat(example.messages) if prompts.knows_chats else prompts.text(example.text)
        longest = min(2 * len(prompts.text(example.reference)) + _ROOM, self._engine.context_length - len(prompt))
        if longest < 1:
            raise InvalidRequest(f"the example leaves no room for an answer: it has {len(prompt)} tokens")
        request = GenerationRequest(
            prompt, longest, Sampling(temperature=0), deadline_s=MAX_TIMEOUT_S, request_id="labelled-example"
        )
        stream = self._engine.submit(request)
        try:
            return "".join([delta.text async for delta in stream])
        finally:
            await stream.aclose()

    @property
    def _engine(self) -> Engine:
        if self._model.engine is None:
            raise ServingError("this model continues no text")
        return self._model.engine

    @property
    def _pooling(self) -> PoolingEngine:
        if self._model.pooling is None:
            raise ServingError("this model gives no labels")
        return self._model.pooling
