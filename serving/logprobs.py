"""Log-probabilities of tokens in the two shapes that OpenAI's clients read: that of chats and that of completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from serving.engine import TokenLogprob

Document = dict[str, object]
Kind = Literal["chat", "text"]
TokenBytes = Callable[[int], bytes]
_LEAST = -9999.0
"""What OpenAI writes for a token that could not come; JSON has no infinity."""


def chat_logprobs(tokens: Sequence[TokenLogprob], token_bytes: TokenBytes) -> Document:
    """One entry per token, each with its alternatives."""
    entries = []
    for token in tokens:
        top = [_entry(token_id, logprob, token_bytes) for token_id, logprob in token.top]
        entries.append({**_entry(token.token_id, token.logprob, token_bytes), "top_logprobs": top})
    return {"content": entries, "refusal": None}


def text_logprobs(tokens: Sequence[TokenLogprob | int], token_bytes: TokenBytes, offset: int) -> Document:
    """Parallel lists. A bare id is the first token of an echoed prompt, of which nothing can be said.

    `offset`: characters of the choice's text before these tokens.
    """
    texts, offsets = [], []
    for token in tokens:
        texts.append(_text(token if isinstance(token, int) else token.token_id, token_bytes))
        offsets.append(offset)
        offset += len(texts[-1])
    known = [None if isinstance(token, int) else token for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [token and _finite(token.logprob) for token in known],
        "top_logprobs": [token and _alternatives(token, token_bytes) for token in known],
        "text_offset": offsets,
    }


def length_of(ids: Sequence[int], token_bytes: TokenBytes) -> int:
    """Characters of tokens as `text_logprobs` counts them."""
    return sum(len(_text(token_id, token_bytes)) for token_id in ids)


def _entry(token_id: int, logprob: float, token_bytes: TokenBytes) -> Document:
    written = token_bytes(token_id)
    return {"token": _text(token_id, token_bytes), "logprob": _finite(logprob), "bytes": list(written)}


def _alternatives(token: TokenLogprob, token_bytes: TokenBytes) -> dict[str, float]:
    """The most likely ones; the token itself is always among them."""
    ranked = {**dict(token.top), token.token_id: token.logprob}
    return {_text(token_id, token_bytes): _finite(logprob) for token_id, logprob in ranked.items()}


def _text(token_id: int, token_bytes: TokenBytes) -> str:
    return token_bytes(token_id).decode(errors="replace")


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
