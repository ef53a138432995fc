"""The OpenAI API over one engine: routes, and every failure in OpenAI's shape. Knows nothing of Ray.

A request goes: pydantic (schemas) -> token ids (prompts) -> engine -> answer (answers). Nothing leaks a traceback.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import answers
from serving.answers import Document, Envelope, Kind
from serving.engine import Engine, GenerationRequest, Sampling, TokenStream
from serving.errors import EngineFailed, InvalidRequest, ModelNotFound, Overloaded, RequestError, error_body
from serving.middleware import BodyLimit, RequestIds
from serving.model_dir import Lineage
from serving.prompts import Prompts
from serving.schemas import ChatCompletionRequest, CompletionRequest, GenerationOptions

MAX_BODY_BYTES = 4 * 1024 * 1024
RETRY_AFTER_S = 1
DEFAULT_MAX_TOKENS = 512
"""Of a chat answer whose request names no limit, as far as the context has room for it."""
_UNION_TAGS = re.compile(r"str|list\[.*|constrained-.*|body")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelCard:
    """What is served: `name` is the deployment's, `model_name` and `version` the registry's."""

    name: str
    model_name: str
    version: int
    created: int
    lineage: Lineage

    def document(self) -> Document:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "athanor",
            "model": self.model_name,
            "version": self.version,
            "teachers": list(self.lineage.teachers),
            "manifest_sha256": self.lineage.manifest_sha256,
            "job_uid": self.lineage.job_uid,
        }


def build_api(card: ModelCard, engine: Engine, prompts: Prompts, *, max_body_bytes: int = MAX_BODY_BYTES) -> ASGIApp:
    """The ASGI application of one served model; the engine ends with it."""
    routes = Routes(card, engine, prompts)

    @asynccontextmanager
    async def until_shutdown(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await asyncio.to_thread(engine.close)

    title = f"{card.name}, OpenAI-compatible"
    api = FastAPI(title=title, docs_url=None, redoc_url=None, lifespan=until_shutdown)
    api.add_api_route("/healthz", routes.healthz, methods=["GET"])
    api.add_api_route("/v1/models", routes.models, methods=["GET"])
    api.add_api_route("/v1/models/{name}", routes.model, methods=["GET"])
    api.add_api_route("/v1/chat/completions", routes.chat_completions, methods=["POST"], response_model=None)
    api.add_api_route("/v1/completions", routes.completions, methods=["POST"], response_model=None)
    api.add_exception_handler(RequestError, _refuse)
    api.add_exception_handler(RequestValidationError, _refuse_invalid)
    api.add_exception_handler(HTTPException, _refuse_http)
    api.add_exception_handler(EngineFailed, _fail)
    api.add_exception_handler(Exception, _fail)
    return RequestIds(BodyLimit(api, max_bytes=max_body_bytes))


class Routes:
    """One method per route."""

    def __init__(self, card: ModelCard, engine: Engine, prompts: Prompts) -> None:
        self._card = card
        self._engine = engine
        self._prompts = prompts

    async def healthz(self) -> Document:
        """Alive, and how busy."""
        load = self._engine.load
        return {"status": "ok", "running": load.running, "waiting": load.waiting}

    async def models(self) -> Document:
        """The one model behind this address, with its lineage."""
        return {"object": "list", "data": [self._card.document()]}

    async def model(self, name: str) -> Document:
        self._check_model(name)
        return self._card.document()

    async def chat_completions(self, body: ChatCompletionRequest, request: Request) -> Response:
        """The assistant's next message."""
        self._check_model(body.model)
        prompt_ids = self._prompts.chat([message.as_template_input() for message in body.messages])
        return await self._answer("chat", body, prompt_ids, body.token_limit, request)

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """The continuation of a plain prompt."""
        self._check_model(body.model)
        return await self._answer("text", body, self._prompts.text(body.single_prompt), body.token_limit, request)

    async def _answer(
        self, kind: Kind, body: GenerationOptions, prompt_ids: tuple[int, ...], limit: int | None, request: Request
    ) -> Response:
        stream = self._engine.submit(self._generation(body, prompt_ids, limit))
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        envelope = Envelope(kind, f"{prefix}-{uuid4().hex}", int(time.time()), body.model, len(prompt_ids))
        if body.stream:
            events = _events(envelope, stream, body.wants_usage_chunk, request)
            return EventStream(events, stream, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        return JSONResponse(await answers.whole(envelope, stream))

    def _generation(self, body: GenerationOptions, prompt_ids: tuple[int, ...], limit: int | None) -> GenerationRequest:
        """Check the length against the model's context; without a limit an answer has at most DEFAULT_MAX_TOKENS."""
        room = self._engine.context_length - len(prompt_ids)
        if room < (limit or 1):
            raise InvalidRequest(
                f"this model's context is {self._engine.context_length} tokens; the prompt has {len(prompt_ids)}"
                + (f" and the answer may take {limit}" if limit else ""),
                param="messages" if isinstance(body, ChatCompletionRequest) else "prompt",
                code="context_length_exceeded",
            )
        sampling = Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
        )
        return GenerationRequest(prompt_ids, limit or min(room, DEFAULT_MAX_TOKENS), sampling, body.stop_strings)

    def _check_model(self, name: str) -> None:
        if name not in (self._card.name, self._card.model_name):
            raise ModelNotFound(
                f"the model `{name}` is not here; this endpoint serves `{self._card.name}`", param="model"
            )


class EventStream(StreamingResponse):
    """Server-sent events; they end with the response, however that ends, so that the engine knows at once.

    The answer is closed here too: closing a generator that never began runs nothing of it.
    """

    body_iterator: AsyncGenerator[bytes]

    def __init__(self, events: AsyncGenerator[bytes], stream: TokenStream, **options: Any) -> None:
        super().__init__(events, **options)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._stream), aclosing(self.body_iterator):
            await super().__call__(scope, receive, send)


async def _events(envelope: Envelope, stream: TokenStream, with_usage: bool, request: Request) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(answers.chunks(envelope, stream, with_usage=with_usage)) as documents:
            async for document in documents:
                yield answers.event(document)
    except EngineFailed:
        yield answers.event(_server_error(_request_id(request)))
        return
    yield answers.DONE


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"retry-after": str(RETRY_AFTER_S)} if isinstance(error, Overloaded) else None
    return _reply(error.status, error_body(error.message, kind=error.kind, param=error.param, code=error.code), headers)


async def _refuse_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _refuse(request, _explain(error.errors()))


async def _refuse_http(request: Request, error: Exception) -> Response:
    """A path or a method that is not there."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _reply(error.status_code, error_body(message, kind="invalid_request_error"), error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    request_id = _request_id(request)
    if not isinstance(error, ClientDisconnect):
        logger.error("request %r failed", request_id, exc_info=error)
    return _reply(500, _server_error(request_id))


def _server_error(request_id: str) -> Document:
    return error_body(f"the server failed on this request; its log has more under {request_id}", kind="server_error")


def _request_id(request: Request) -> str:
    return str(request.state.request_id)


def _reply(status: int, document: Document, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: an error may repeat what a client sent, also what UTF-8 cannot say."""
    return Response(json.dumps(document), status, headers, media_type="application/json")


def _explain(errors: Sequence[Mapping[str, object]]) -> InvalidRequest:
    """The first of pydantic's errors, and with it the others about the same field."""
    fields = [_field(error["loc"]) for error in errors]
    first = fields[0]
    reasons = dict.fromkeys(str(error["msg"]) for error, field in zip(errors, fields, strict=True) if field == first)
    what = "; or ".join(reasons)
    return InvalidRequest(f"{first}: {what}" if first else what, param=first or None)


def _field(location: object) -> str:
    """`messages.0.content` from pydantic's path, without the names of the types it tried."""
    parts = [str(part) for part in location] if isinstance(location, tuple) else []
    return ".".join(part for part in parts if not _UNION_TAGS.fullmatch(part))
