"""The answers of the API as types, for its OpenAPI document alone: what is sent is built in `answers.py` and its like.

A test draws requests and holds every answer against these. Knows nothing of engines.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]


class Answer(BaseModel):
    """Base of all."""

    model_config = ConfigDict(protected_namespaces=())


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PoolingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class TopLogprob(Answer):
    token: str
    logprob: float
    """-9999 for what could not come."""
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    content: list[TokenLogprob]
    refusal: None


class ChatMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Answer):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Answer):
    """One event of a stream; with `stream_options.include_usage` the last one has the usage and no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextLogprobs(Answer):
    """Lists of one length; of the first token of a prompt that is echoed nothing can be said."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Answer):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class Completion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class TextChunkChoice(Answer):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class CompletionChunk(Answer):
    """One event of a stream; with `stream_options.include_usage` the last one has the usage and no choices."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: Usage | None = None


class Embedding(Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or little-endian float32 in base64."""


class EmbeddingList(Answer):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PoolingUsage


class Label(Answer):
    label: str
    probability: float


class Classified(Answer):
    """Of one text; `probs` are in the order of the model's labels, `labels` begin with the likeliest."""

    index: int
    label: str
    probs: list[float]
    num_classes: int
    labels: list[Label]


class Classification(Answer):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classified]
    usage: PoolingUsage


class LivingVersion(Answer):
    model: str
    revision: int
    weight: int
    """Share of the requests in basis points, 0 to 10000."""


class Model(Answer):
    """A deployment, or a version of it; what follows `owned_by` is left out while no replica has told it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["athanor"]
    model: str | None = None
    version: int | None = None
    teachers: list[str] | None = None
    manifest_sha256: str | None = None
    job_uid: str | None = None
    tasks: list[Literal["generate", "classify", "embed"]] | None = None
    max_model_len: int | None = None
    versions: list[LivingVersion] | None = None


class ModelList(Answer):
    object: Literal["list"]
    data: list[Model]


class Failure(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Answer):
    """Every failure, in OpenAI's shape."""

    error: Failure


class Health(Answer):
    status: Literal["ok"]
