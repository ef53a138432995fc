"""The OpenAI API over one loaded model: routes, and every failure in OpenAI's shape. Knows nothing of Ray.

A request goes: pydantic (schemas) -> token ids (prompts) -> engine (generation) -> answer (answers). Whoever may call
it is the gateway's affair.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import answers, pooling_api
from serving.answers import Choice, Envelope
from serving.backend import BackendRequest, Chunk
from serving.engine import PoolingEngine, Task
from serving.errors import EngineFailed, InvalidRequest, ModelNotFound, RequestError
from serving.failures import add_handlers, refusal, server_error
from serving.generation import Body, Generator
from serving.logprobs import Document, Kind
from serving.middleware import BodyLimit, RequestIds
from serving.model_dir import Lineage
from serving.schemas import ChatCompletionRequest, ClassifyRequest, CompletionRequest, EmbeddingRequest, Supported

if TYPE_CHECKING:
    from serving.loading import LoadedModel

TITLE = "Athanor, OpenAI-compatible"
MAX_BODY_BYTES = 4 * 1024 * 1024
_LONG_BODY = 64 * 1024
ROUTES: Mapping[str, tuple[str, str]] = {
    "/v1/models": ("GET", "models"),
    "/v1/models/{name}": ("GET", "model"),
    "/v1/chat/completions": ("POST", "chat_completions"),
    "/v1/completions": ("POST", "completions"),
    "/v1/embeddings": ("POST", "embeddings"),
    "/v1/classify": ("POST", "classify"),
}
"""By path: its method, and the one of `Routes` that answers."""
T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelCard:
    """What is served: `name` is the deployment's, `model_name` and `version` the registry's."""

    name: str
    model_name: str
    version: int
    created: int
    lineage: Lineage

    @property
    def names(self) -> tuple[str, ...]:
        """All that requests may call it."""
        return self.name, f"{self.model_name}@{self.version}", self.model_name

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


def build_api(card: ModelCard, model: LoadedModel, *, max_body_bytes: int = MAX_BODY_BYTES) -> ASGIApp:
    """The ASGI application of one served model; the engine ends with it."""
    routes = Routes(card, model)

    @asynccontextmanager
    async def until_shutdown(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await asyncio.to_thread(routes.close)

    api = FastAPI(title=TITLE, docs_url=None, redoc_url=None, lifespan=until_shutdown)
    api.add_api_route("/healthz", routes.healthz, methods=["GET"])
    add_routes(api, routes)
    add_handlers(api)
    return RequestIds(BodyLimit(api, max_bytes=max_body_bytes))


def add_routes(api: FastAPI, routes: Routes) -> None:
    for path, (method, name) in ROUTES.items():
        api.add_api_route(path, getattr(routes, name), methods=[method], response_model=None)


class Routes:
    """One method per route."""

    def __init__(self, card: ModelCard, model: LoadedModel) -> None:
        self._card = card
        self._model = model

    async def healthz(self) -> Document:
        """Alive, and how busy."""
        loads = [engine.load for engine in (self._model.engine, self._model.pooling) if engine is not None]
        busy: dict[str, int] = {name: sum(getattr(load, name) for load in loads) for name in ("running", "waiting")}
        return {"status": "ok", **busy}

    async def models(self) -> Document:
        """The one model behind this address, with its lineage."""
        return {"object": "list", "data": [self._document()]}

    async def model(self, name: str) -> Document:
        self._check_model(name)
        return self._document()

    async def chat_completions(self, body: ChatCompletionRequest, request: Request) -> Response:
        """The assistant's next message."""
        self._take(body, request)
        self._check_task("generate")
        turns = [message.as_template_input() for message in body.messages]
        prompt = await _tokenized(request, lambda: self._model.prompts.chat(turns))
        return await self._answer("chat", body, [prompt], request)

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """The continuation of plain prompts."""
        self._take(body, request)
        self._check_task("generate")
        prompts = await _tokenized(request, lambda: [self._model.prompts.text(each) for each in body.prompts])
        return await self._answer("text", body, prompts, request)

    async def embeddings(self, body: EmbeddingRequest, request: Request) -> Response:
        """A vector for each text."""
        self._take(body, request)
        engine = self._pooling("embed")
        length = engine.context_length
        texts = await _tokenized(request, lambda: pooling_api.input_ids(body, self._model.prompts, length))
        return JSONResponse(await pooling_api.embeddings(body, engine, texts, self._card.name))

    async def classify(self, body: ClassifyRequest, request: Request) -> Response:
        """The labels of each text, with probabilities."""
        self._take(body, request)
        engine, exchange = self._pooling("classify"), _exchange(request)
        length = engine.context_length
        texts = await _tokenized(request, lambda: pooling_api.input_ids(body, self._model.prompts, length))
        created = exchange.created or int(time.time())
        identity = {"name": self._card.name, "request_id": _bare(exchange.request_id)}
        return JSONResponse(await pooling_api.classes(engine, texts, **identity, created=created))

    def close(self) -> None:
        for engine in (self._model.engine, self._model.pooling):
            if engine is not None:
                engine.close()

    async def _answer(self, kind: Kind, body: Body, prompts: Sequence[tuple[int, ...]], request: Request) -> Response:
        """Whole, or as a stream of events."""
        engine, exchange = self._model.engine, _exchange(request)
        assert engine is not None
        choices = await Generator(engine, self._model.prompts).choices(kind, body, prompts, exchange)
        answer_id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{_bare(exchange.request_id)}"
        created = exchange.created or int(time.time())
        envelope = Envelope(kind, answer_id, created, self._card.name, sum(map(len, prompts)))
        if body.stream:
            return EventStream(_events(envelope, choices, body.wants_usage_chunk, exchange), choices)
        return WholeAnswer(await answers.whole(envelope, choices))

    def _document(self) -> Document:
        engine = self._model.engine or self._model.pooling
        length = engine.context_length if engine is not None else None
        return {**self._card.document(), "tasks": sorted(self._model.tasks), "max_model_len": length}

    def _take(self, body: Supported, request: Request) -> None:
        self._check_model(body.model)
        if body.ignored:
            names = ", ".join(map(repr, body.ignored))
            logger.info("request %s: unknown options are ignored: %s", request.state.request_id, names)

    def _check_model(self, name: str) -> None:
        if name not in self._card.names:
            raise ModelNotFound(
                f"the model `{name}` is not here; this endpoint serves `{self._card.name}`", param="model"
            )

    def _check_task(self, task: Task) -> None:
        if task not in self._model.tasks:
            can = ", ".join(sorted(self._model.tasks))
            message = f"`{self._card.name}` cannot {task}; it can {can}"
            raise InvalidRequest(message, param="model", code="unsupported_task")

    def _pooling(self, task: Task) -> PoolingEngine:
        self._check_task(task)
        assert self._model.pooling is not None
        return self._model.pooling


class WholeAnswer(Response):
    """A JSON document in one piece, with the tokens behind it."""

    def __init__(self, chunk: Chunk) -> None:
        super().__init__(chunk.data, media_type="application/json")
        self._chunk = chunk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        extra = {"token_ids": self._chunk.token_ids, "finished": self._chunk.finished}
        await send({"type": "http.response.body", "body": self.body, **extra})


class EventStream(StreamingResponse):
    """Server-sent events; they end with the response, however that ends, so that the engine knows at once.

    The answers are closed here too: closing a generator that never began runs nothing of it.
    """

    def __init__(self, events: AsyncGenerator[Chunk], choices: Sequence[Choice]) -> None:
        super().__init__((), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._events = events
        self._choices = choices

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            for choice in self._choices:
                await choice.stream.aclose()

    async def stream_response(self, send: Send) -> None:
        """Each event with the tokens behind it, which servers ignore and `backend.respond` reads."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._events:
            extra = {"token_ids": chunk.token_ids, "finished": chunk.finished}
            await send({"type": "http.response.body", "body": chunk.data, "more_body": True, **extra})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _events(
    envelope: Envelope, choices: Sequence[Choice], with_usage: bool, exchange: BackendRequest
) -> AsyncGenerator[Chunk]:
    finished = exchange.resume.finished if exchange.resume else ()
    sent = sum(len(exchange.resume.token_ids.get(index, ())) for index in finished) if exchange.resume else 0
    try:
        async with aclosing(answers.chunks(envelope, choices, with_usage=with_usage, sent_tokens=sent)) as chunks:
            async for chunk in chunks:
                yield chunk
    except RequestError as error:
        yield Chunk(answers.event(refusal(error)))
    except EngineFailed:
        if exchange.can_resume:
            raise
        logger.exception("request %r failed", exchange.request_id)
        yield Chunk(answers.event(server_error(exchange.request_id)))


def _exchange(request: Request) -> BackendRequest:
    """What the gateway said beside the HTTP request; nothing where a client asked the replica itself."""
    given = getattr(request.state, "exchange", None)
    if isinstance(given, BackendRequest):
        return given
    return BackendRequest(request.method, request.url.path, (), b"", str(request.state.request_id), can_resume=False)


async def _tokenized(request: Request, tokenize: Callable[[], T]) -> T:
    """On a thread, where a long text would hold up the answers to others."""
    is_long = len(await request.body()) > _LONG_BODY
    return await asyncio.to_thread(tokenize) if is_long else tokenize()


def _bare(request_id: str) -> str:
    return request_id.removeprefix("req_")
