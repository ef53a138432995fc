"""The answers of the OpenAI API: whole objects and the chunks of a stream, as plain JSON documents."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from serving.engine import Delta, FinishReason, TokenStream

Document = dict[str, object]
Kind = Literal["chat", "text"]
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

    def document(self, choices: list[Document], *, chunk: bool) -> Document:
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

    def choice(self, text: str, reason: FinishReason | None) -> Document:
        if self.kind == "text":
            return _choice({"text": text}, reason)
        return _choice({"message": {"role": "assistant", "content": text, "refusal": None}}, reason)

    def piece(self, text: str, reason: FinishReason | None, *, first: bool) -> Document:
        if self.kind == "text":
            return _choice({"text": text}, reason)
        delta: Document = {"role": "assistant"} if first else {}
        return _choice({"delta": {**delta, "content": text} if text or first else delta}, reason)


async def whole(envelope: Envelope, stream: TokenStream) -> Document:
    """The complete answer, once it is there."""
    deltas: list[Delta] = []
    async with aclosing(stream):
        async for delta in stream:
            deltas.append(delta)
    text = "".join(delta.text for delta in deltas)
    document = envelope.document([envelope.choice(text, deltas[-1].finish_reason)], chunk=False)
    return {**document, "usage": envelope.usage(sum(delta.num_tokens for delta in deltas))}


async def chunks(envelope: Envelope, stream: TokenStream, *, with_usage: bool) -> AsyncGenerator[Document]:
    """The answer in pieces as they come; tokens that add no text yet send nothing."""
    num_tokens, first = 0, True
    extra: Document = {"usage": None} if with_usage else {}
    async with aclosing(stream):
        async for delta in stream:
            num_tokens += delta.num_tokens
            if delta.text or delta.finish_reason or first:
                piece = envelope.piece(delta.text, delta.finish_reason, first=first)
                yield {**envelope.document([piece], chunk=True), **extra}
                first = False
    if with_usage:
        yield {**envelope.document([], chunk=True), "usage": envelope.usage(num_tokens)}


def event(document: Mapping[str, object]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _choice(content: Document, reason: FinishReason | None) -> Document:
    return {"index": 0, **content, "logprobs": None, "finish_reason": reason}
