"""The answers of the OpenAI API: whole objects and the chunks of a stream, as plain JSON documents.

A chunk of a stream also says, beside its bytes, which tokens it brought: another replica may have to go on there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from serving.backend import Chunk
from serving.engine import Delta, FinishReason, TokenLogprob, TokenStream
from serving.logprobs import Document, Kind, TokenBytes, chat_logprobs, length_of, text_logprobs

DONE = b"data: [DONE]\n\n"
_OBJECT: Mapping[Kind, tuple[str, str]] = {
    "chat": ("chat.completion", "chat.completion.chunk"),
    "text": ("text_completion", "text_completion"),
}


@dataclass(frozen=True)
class Envelope:
    """What every object of one answer carries."""

    kind: Kind
    id: str
    created: int
    model: str
    prompt_tokens: int

    def document(self, choices: Sequence[Document], *, chunk: bool) -> Document:
        return {
            "id": self.id,
            "object": _OBJECT[self.kind][chunk],
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def usage(self, completion_tokens: int) -> Document:
        """Token counts; the token that ended the answer is counted, as it was generated."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }


@dataclass
class Choice:
    """One of the answers to a request while it grows."""

    kind: Kind
    index: int
    stream: TokenStream
    token_bytes: TokenBytes
    with_logprobs: bool = False
    echo: str = ""
    """The prompt's text, where the answer begins with it."""
    echoed: Sequence[TokenLogprob | int] = ()
    """The prompt's tokens, where their log-probabilities are wanted too."""
    given_ids: Sequence[int] = ()
    """What the client has already: then neither echo nor role comes again."""
    num_tokens: int = field(init=False)
    _offset: int = field(init=False)
    _unsent: list[Delta] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.num_tokens = len(self.given_ids)
        self._first = not self.given_ids
        there = [*_ids(self.echoed), *self.given_ids] if self.given_ids else []
        counts_characters = self.with_logprobs and self.kind == "text"
        self._offset = length_of(there, self.token_bytes) if counts_characters else 0

    def push(self, delta: Delta) -> tuple[Document, Chunk] | None:
        """The choice in the next chunk, and what that adds; tokens that add no text yet wait for it."""
        self.num_tokens += delta.num_tokens
        self._unsent.append(delta)
        if not (delta.text or delta.finish_reason or self._first):
            return None
        text, ids, logprobs = self._take()
        first, self._first = self._first, False
        added = Chunk(b"", {self.index: ids}, (self.index,) if delta.finish_reason else ())
        if self.kind == "text":
            return self._document({"text": text}, logprobs, delta.finish_reason), added
        role: Document = {"role": "assistant"} if first else {}
        said = {**role, "content": text} if text or first else role
        return self._document({"delta": said}, logprobs, delta.finish_reason), added

    async def whole(self) -> tuple[Document, tuple[int, ...]]:
        """The choice once it is complete, and its tokens."""
        async with aclosing(self.stream):
            async for delta in self.stream:
                self.num_tokens += delta.num_tokens
                self._unsent.append(delta)
        reason = self._unsent[-1].finish_reason
        text, ids, logprobs = self._take()
        if self.kind == "text":
            return self._document({"text": text}, logprobs, reason), ids
        message = {"role": "assistant", "content": text, "refusal": None}
        return self._document({"message": message}, logprobs, reason), ids

    def _take(self) -> tuple[str, tuple[int, ...], Document | None]:
        """Text, token ids and log-probabilities of what was not sent yet."""
        taken, self._unsent = self._unsent, []
        text = (self.echo if self._first else "") + "".join(delta.text for delta in taken)
        ids = tuple(token_id for delta in taken for token_id in delta.token_ids)
        scored = [token for delta in taken for token in delta.logprobs]
        return text, ids, self._logprobs(scored) if self.with_logprobs else None

    def _logprobs(self, scored: Sequence[TokenLogprob]) -> Document:
        if self.kind == "chat":
            return chat_logprobs(scored, self.token_bytes)
        tokens = [*(self.echoed if self._first else ()), *scored]
        offset = self._offset
        self._offset += length_of(_ids(tokens), self.token_bytes)
        return text_logprobs(tokens, self.token_bytes, offset)

    def _document(self, content: Document, logprobs: Document | None, reason: FinishReason | None) -> Document:
        return {"index": self.index, **content, "logprobs": logprobs, "finish_reason": reason}


def _ids(tokens: Sequence[TokenLogprob | int]) -> list[int]:
    return [token if isinstance(token, int) else token.token_id for token in tokens]


async def whole(envelope: Envelope, choices: Sequence[Choice]) -> Chunk:
    """The complete answer, once it is there. When one choice breaks, the others end with it."""
    tasks = [asyncio.ensure_future(choice.whole()) for choice in choices]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        await _end(tasks)
    document = envelope.document([document for document, _ in answers], chunk=False)
    usage = envelope.usage(sum(choice.num_tokens for choice in choices))
    token_ids = {choice.index: ids for choice, (_, ids) in zip(choices, answers, strict=True)}
    return Chunk(written({**document, "usage": usage}), token_ids, tuple(token_ids))


async def chunks(
    envelope: Envelope, choices: Sequence[Choice], *, with_usage: bool, sent_tokens: int = 0
) -> AsyncGenerator[Chunk]:
    """The answer in pieces as they come, and its end. `sent_tokens`: of choices that the client has all of."""
    extra: Document = {"usage": None} if with_usage else {}
    async with aclosing(_merged(choices)) as deltas:
        async for choice, delta in deltas:
            if (pushed := choice.push(delta)) is not None:
                document, added = pushed
                data = event({**envelope.document([document], chunk=True), **extra})
                yield Chunk(data, added.token_ids, added.finished)
    num_tokens = sent_tokens + sum(choice.num_tokens for choice in choices)
    usage = event({**envelope.document([], chunk=True), "usage": envelope.usage(num_tokens)}) if with_usage else b""
    yield Chunk(usage + DONE)  # in one piece: whoever has it has all


async def _merged(choices: Sequence[Choice]) -> AsyncGenerator[tuple[Choice, Delta]]:
    """Deltas of all choices as they come."""
    if len(choices) == 1:
        async with aclosing(choices[0].stream) as stream:
            async for delta in stream:
                yield choices[0], delta
        return
    pending = {asyncio.ensure_future(_next(choice)): choice for choice in choices}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                result, choice = task.result(), pending.pop(task)
                if result is not None:
                    pending[asyncio.ensure_future(_next(choice))] = choice
                    yield choice, result
    finally:
        await _end([*pending])
        for choice in choices:
            await choice.stream.aclose()


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _next(choice: Choice) -> Delta | None:
    return await anext(aiter(choice.stream), None)


def event(document: Mapping[str, object]) -> bytes:
    """One server-sent event."""
    return b"data: " + written(document) + b"\n\n"


def written(document: Mapping[str, object]) -> bytes:
    """JSON in UTF-8."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
