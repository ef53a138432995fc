"""From a request for completions to requests for the engine: lengths, seeds, forms, and what is there already.

One engine request per choice; choice `p * n + i` is the i-th answer to prompt p and draws with seed + i.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.answers import Choice
from serving.backend import BackendRequest
from serving.engine import Delta, Engine, GenerationRequest, Guide, TokenLogprob, TokenStream
from serving.errors import InvalidRequest
from serving.guides import TokenGuide, asked_form
from serving.logprobs import Kind
from serving.prompts import Prompts
from serving.schemas import ChatCompletionRequest, CompletionRequest

DEFAULT_MAX_TOKENS = 512
"""Of a chat answer whose request names no limit, as far as the context has room for it."""
Body = ChatCompletionRequest | CompletionRequest
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Generator:
    """The engine and the tokenizer, as requests for completions use them."""

    engine: Engine
    prompts: Prompts

    async def choices(self, kind: Kind, body: Body, prompts: Sequence[Ids], exchange: BackendRequest) -> list[Choice]:
        """All choices that the client does not have yet, begun; InvalidRequest, or Overloaded, before any is."""
        limits = [self._limit(body, ids) for ids in prompts]
        self.prompts.check_ids([*(body.logit_bias or {})], param="logit_bias")
        guide = await self._guide(body)
        if body.num_logprobs is not None:
            await asyncio.to_thread(self.prompts.token_bytes, 0)  # the first time, this reads the whole vocabulary
        echoes = [await self._echo(body, ids) for ids in prompts]
        begun: list[Choice] = []
        try:
            for index in range(len(prompts) * body.num_choices):
                at, nth = divmod(index, body.num_choices)
                if exchange.resume is not None and index in exchange.resume.finished:
                    continue
                own_guide = guide.copy() if guide else None
                request = _request(body, prompts[at], limits[at], nth, _given(exchange, index), own_guide, exchange)
                begun.append(self._choice(kind, index, body, request, echoes[at]))
        except BaseException:
            for choice in begun:
                await choice.stream.aclose()
            raise
        return begun

    def _choice(self, kind: Kind, index: int, body: Body, request: GenerationRequest, echo: _Echo) -> Choice:
        stream = self.engine.submit(request) if request.max_tokens else _Silence()
        return Choice(
            kind,
            index,
            stream,
            self.prompts.token_bytes,
            with_logprobs=body.num_logprobs is not None,
            echo=echo.text,
            echoed=echo.tokens,
            given_ids=request.given_ids,
        )

    def _limit(self, body: Body, prompt_ids: Ids) -> int:
        """Most tokens of the answer, within the model's context; without a limit there are DEFAULT_MAX_TOKENS."""
        limit, room = body.token_limit, self.engine.context_length - len(prompt_ids)
        if room < (1 if limit is None else limit):
            raise InvalidRequest(
                f"this model's context is {self.engine.context_length} tokens; the prompt has {len(prompt_ids)}"
                + (f" and the answer may take {limit}" if limit else ""),
                param="messages" if isinstance(body, ChatCompletionRequest) else "prompt",
                code="context_length_exceeded",
            )
        return min(room, DEFAULT_MAX_TOKENS) if limit is None else limit

    async def _guide(self, body: Body) -> TokenGuide | None:
        form = asked_form(body)
        return await asyncio.to_thread(self.prompts.guide, form) if form else None

    async def _echo(self, body: Body, prompt_ids: Ids) -> _Echo:
        if not (isinstance(body, CompletionRequest) and body.echo):
            return _Echo()
        text = self.prompts.decode(prompt_ids)
        if body.logprobs is None:
            return _Echo(text)
        scored = await self.engine.score(prompt_ids, start=1, top_k=body.logprobs) if len(prompt_ids) > 1 else None
        return _Echo(text, (prompt_ids[0], *(scored.tokens if scored else ())))


@dataclass(frozen=True)
class _Echo:
    """What of the prompt stands before each answer."""

    text: str = ""
    tokens: tuple[TokenLogprob | int, ...] = ()


def _request(
    body: Body,
    prompt_ids: Ids,
    limit: int,
    nth: int,
    given_ids: Ids,
    guide: Guide | None,
    exchange: BackendRequest,
) -> GenerationRequest:
    seed = body.seed if body.seed is not None else exchange.seed
    return GenerationRequest(
        prompt_ids,
        limit,
        body.sampling(None if seed is None else _wrapped(seed + nth)),
        body.stop_strings,
        given_ids,
        body.num_logprobs,
        guide,
        exchange.deadline_s,
        exchange.request_id,
    )


def _given(exchange: BackendRequest, index: int) -> Ids:
    given: Mapping[int, Ids] = exchange.resume.token_ids if exchange.resume else {}
    return given.get(index, ())


def _wrapped(seed: int) -> int:
    """Within 64 bits, with a sign."""
    return (seed + 2**63) % 2**64 - 2**63


class _Silence:
    """The answer of no tokens, for those who want the prompt's log-probabilities alone."""

    def __init__(self) -> None:
        self._said = False

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> Delta:
        if self._said:
            raise StopAsyncIteration
        self._said = True
        return Delta("", 0, "length")

    async def aclose(self) -> None:
        self._said = True
