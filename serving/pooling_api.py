"""The answers of models that read a text at once: embeddings as OpenAI gives them, labels as vLLM does."""

from __future__ import annotations

import array
import base64
import sys
from collections.abc import Sequence

from serving.engine import PoolingEngine
from serving.errors import InvalidRequest
from serving.logprobs import Document
from serving.prompts import Prompts
from serving.schemas import ClassifyRequest, EmbeddingRequest, each_of


def input_ids(body: EmbeddingRequest | ClassifyRequest, prompts: Prompts, context_length: int) -> list[tuple[int, ...]]:
    """Token ids of each text; InvalidRequest for one that the model cannot read whole."""
    texts = [prompts.text(text, param="input") for text in each_of(body.input)]
    longest = max(map(len, texts))
    if longest > context_length:
        raise InvalidRequest(
            f"this model's context is {context_length} tokens; a text has {longest}",
            param="input",
            code="context_length_exceeded",
        )
    return texts


async def embeddings(
    body: EmbeddingRequest, engine: PoolingEngine, texts: Sequence[Sequence[int]], name: str
) -> Document:
    """One vector per text; as base64 they are little-endian float32."""
    vectors = await engine.embed(texts)
    size = len(vectors[0])
    if body.dimensions not in (None, size):
        raise InvalidRequest(f"this model's vectors have {size} dimensions, and no others", param="dimensions")
    encode = _base64 if body.encoding_format == "base64" else list
    data = [{"object": "embedding", "index": at, "embedding": encode(vector)} for at, vector in enumerate(vectors)]
    return {"object": "list", "data": data, "model": name, "usage": _usage(texts)}


async def classes(
    engine: PoolingEngine, texts: Sequence[Sequence[int]], *, name: str, request_id: str, created: int
) -> Document:
    """The likeliest label of each text, and all labels with their probabilities, the likeliest first."""
    rows = await engine.classify(texts)
    data = [{"index": at, **_labelled(engine.labels, row)} for at, row in enumerate(rows)]
    head: Document = {"id": f"classify-{request_id}", "object": "list", "created": created, "model": name}
    return {**head, "data": data, "usage": _usage(texts)}


def _labelled(labels: Sequence[str], probabilities: Sequence[float]) -> Document:
    ranked = sorted(zip(labels, probabilities, strict=True), key=lambda pair: -pair[1])
    return {
        "label": ranked[0][0],
        "probs": list(probabilities),
        "num_classes": len(labels),
        "labels": [{"label": label, "probability": probability} for label, probability in ranked],
    }


def _usage(texts: Sequence[Sequence[int]]) -> Document:
    tokens = sum(map(len, texts))
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _base64(vector: Sequence[float]) -> str:
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()
