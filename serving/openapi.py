"""What the endpoint answers, as an OpenAPI document: every route, every answer, every refusal, and what it asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from serving import answer_schemas as schemas
from serving.openai_api import ROUTES, TITLE, Routes, add_routes
from serving.schemas import MAX_TIMEOUT_S

Document = dict[str, Any]
_ABOUT = "The paths under `/v1` are also there below the name of a deployment: `/support-bot/v1/chat/completions`."
_ANSWERS: Mapping[str, type[BaseModel]] = {
    "/v1/models": schemas.ModelList,
    "/v1/models/{name}": schemas.Model,
    "/v1/chat/completions": schemas.ChatCompletion,
    "/v1/completions": schemas.Completion,
    "/v1/embeddings": schemas.EmbeddingList,
    "/v1/classify": schemas.Classification,
}
_EVENTS: Mapping[str, type[BaseModel]] = {
    "/v1/chat/completions": schemas.ChatCompletionChunk,
    "/v1/completions": schemas.CompletionChunk,
}
_REFUSALS: Mapping[int, str] = {
    400: "A field is wrong; `param` names it.",
    401: "No token, or none that is good.",
    403: "The token is known and does not allow this.",
    404: "No such deployment or version.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "Too many requests; `Retry-After` says when to come back.",
    500: "A mistake of the server; its log has more under the request id.",
    503: "Nobody can answer at the moment; `Retry-After` says when to come back.",
    504: "Not complete in the time allowed.",
}
_OF_BODIES = (408, 413, 504)
_WAIT: Document = {
    "Retry-After": {
        "required": True,
        "description": "Whole seconds.",
        "schema": {"type": "string", "pattern": r"^\d+$"},
    }
}
_ASKS: Document = {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}}
_ANSWERED_BY: Document = {
    "x-athanor-model": {
        "required": True,
        "description": "The version that answered, `name@3`.",
        "schema": {"type": "string"},
    }
}
_HEADERS: Mapping[int, Document] = {401: _ASKS, 429: _WAIT, 503: _WAIT}
_ASKING: tuple[Document, ...] = (
    {
        "name": "x-athanor-session",
        "in": "header",
        "description": "Equal values go to the same version.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,256}$"},
    },
    {
        "name": "x-athanor-timeout",
        "in": "header",
        "description": "Seconds that the request may take.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
    },
    {
        "name": "x-request-id",
        "in": "header",
        "description": "Under which the logs have it.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    },
)


@cache
def api_document() -> Document:
    """The whole of it."""
    api = FastAPI(title=TITLE, version=version("athanor-cluster"), description=_ABOUT, docs_url=None, redoc_url=None)
    add_routes(api, Routes(None, None))  # type: ignore[arg-type]  # nobody asks them
    document = api.openapi()
    for path, (method, _) in ROUTES.items():
        operation = document["paths"][path][method.lower()]
        operation["security"] = [{"bearer": []}]
        operation["responses"] = _responses(path, has_body=method == "POST")
        if method == "POST":
            operation["parameters"] = [*operation.get("parameters", ()), *_ASKING]
    document["paths"] |= _open_paths()
    document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    _add_schemas(document["components"]["schemas"])
    return document


def _responses(path: str, *, has_body: bool) -> Document:
    content: Document = {"application/json": {"schema": _reference(_ANSWERS[path])}}
    if (chunk := _EVENTS.get(path)) is not None:
        content["text/event-stream"] = {"schema": _event(chunk)}
    good: Document = {"description": "The answer.", "content": content}
    statuses = [each for each in _REFUSALS if has_body or each not in _OF_BODIES]
    return {"200": good | ({"headers": _ANSWERED_BY} if has_body else {}), **_refusals(statuses)}


def _event(chunk: type[BaseModel]) -> Document:
    """Of a stream, one event: a piece of the answers, at last its end, or what broke it off."""
    said = {"anyOf": [_reference(chunk), _reference(schemas.ErrorBody)]}
    piece = {"type": "string", "contentMediaType": "application/json", "contentSchema": said}
    return {
        "type": "object",
        "description": f"With `stream`: a server-sent event. Each has a {chunk.__name__}, the last `[DONE]`.",
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, piece]}},
        "required": ["data"],
    }


def _refusals(statuses: Iterable[int]) -> Document:
    content = {"application/json": {"schema": _reference(schemas.ErrorBody)}}
    return {
        str(status): {"description": _REFUSALS[status], "content": content, "headers": _HEADERS.get(status, {})}
        for status in statuses
    }


def _open_paths() -> Document:
    """What needs no token."""
    health = {"application/json": {"schema": _reference(schemas.Health)}}
    return {
        "/healthz": _open("Whether the gateway is alive.", health),
        "/metrics": _open("The numbers of gateway and replicas, for Prometheus.", {"text/plain": _TEXT}),
        "/": _open("A page to talk to a model.", {"text/html": _TEXT}),
    }


_TEXT: Document = {"schema": {"type": "string"}}


def _open(summary: str, content: Document) -> Document:
    responses = {"200": {"description": "It.", "content": content}, **_refusals([500])}
    return {"get": {"summary": summary, "security": [], "responses": responses}}


def _add_schemas(known: Document) -> None:
    """Of all answers; those of FastAPI's own refusals are not ours."""
    for name in ("HTTPValidationError", "ValidationError"):
        known.pop(name, None)
    models: tuple[type[BaseModel], ...] = (schemas.ErrorBody, schemas.Health, *_ANSWERS.values(), *_EVENTS.values())
    for model in models:
        found = model.model_json_schema(ref_template=_PLACE, mode="serialization")
        for name, schema in {**found.pop("$defs", {}), model.__name__: found}.items():
            known[f"{name}{_SUFFIX}"] = schema


_SUFFIX = "Answer"
"""Requests have names of their own: a ChatMessage that is sent is another one than that which comes."""
_PLACE = f"#/components/schemas/{{model}}{_SUFFIX}"


def _reference(model: type[BaseModel]) -> Document:
    return {"$ref": _PLACE.format(model=model.__name__)}
