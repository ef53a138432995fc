"""The HTTP side of the gateway, as plain ASGI: who calls, which deployment is meant, and the answer as it comes.

Open to everybody are `/` (the chat page, which holds no data), `/healthz` and `/metrics`; all else needs a token. Paths
that are not listed here lead nowhere: no route of a replica or of Serve can be reached through them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import page
from serving.auth import ANYBODY, Caller, Callers
from serving.backend import BackendRequest, Backends, Chunk, Head
from serving.catalog import Catalog
from serving.errors import BodyTooLarge, InvalidRequest, ModelNotFound, RequestError, Unauthenticated
from serving.failures import refusal, reply, retry_after, server_error
from serving.gateway import Call, Gateway, Item
from serving.gateway_metrics import CONTENT_TYPE, Exposition, GatewayMetrics
from serving.limits import CallerLimits, Limits
from serving.live_outcomes import LiveOutcomes
from serving.logprobs import Document
from serving.middleware import BodyTooLate, RequestIds, read_body
from serving.mirroring import Mirroring
from serving.openai_api import MAX_BODY_BYTES
from serving.openapi import api_document
from serving.routes import Backend, Route, RouteTable
from serving.schemas import MAX_TIMEOUT_S

SESSION_HEADER = "x-athanor-session"
TIMEOUT_HEADER = "x-athanor-timeout"
_BODY_S = 60.0
"""How long a body may take to come."""
_ANSWERING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify"})
_PATH = re.compile(r"(?:/(?P<deployment>[a-z][a-z0-9-]{0,39}))?(?P<rest>/v1/[^?]*)")
_MODEL_PATH = "/v1/models/"
_MAX_NAME = 256
_PASSED_ON = ("content-type", "accept")
logger = logging.getLogger(__name__)


@dataclass
class Entrance:
    """What both ways into the gateway share: the table of routes, callers, limits, numbers."""

    backends: Backends
    callers: Callers
    metrics: GatewayMetrics = field(default_factory=GatewayMetrics)
    mirroring: Mirroring | None = None
    live: LiveOutcomes | None = None
    limits: CallerLimits = field(default_factory=lambda: CallerLimits(Limits()))
    table: RouteTable = field(default_factory=RouteTable)
    """Replaced whole when the control plane writes another."""

    def __post_init__(self) -> None:
        self.gateway = Gateway(
            self.backends, self.metrics, self.mirroring, self.live, route=lambda name: self.table.route(name)
        )
        self.catalog = Catalog(self.backends)
        if self.mirroring is not None:
            self.metrics.counts_left_out(self.mirroring)
        self.exposition = Exposition(self.metrics, self.backends)

    async def caller(self, authorization: str, address: str) -> Caller:
        """Unauthenticated, Forbidden, Unavailable or RateLimited."""
        return ANYBODY if self.table.auth == "none" else await self.callers.caller(authorization, address)

    def admitted(self, caller: Caller) -> AbstractContextManager[None]:
        """One more request of a token while the block lasts; RateLimited. Where there are no tokens, engines refuse."""
        return nullcontext() if caller is ANYBODY else self.limits.one(caller.token_id)

    def target(self, model: str, deployment: str | None = None) -> tuple[Route, Backend | None]:
        """Which deployment a request means, and which version if it names one; ModelNotFound or InvalidRequest."""
        if len(model) > _MAX_NAME:
            raise InvalidRequest(f"model: {_MAX_NAME} characters at most", param="model")
        if deployment is None:
            if (found := self.table.named(model)) is None:
                known = ", ".join(route.name for route in self.table.routes) or "none as of now"
                raise ModelNotFound(f"the model `{model}` is not here; there are: {known}", param="model")
            return found
        route = self.route(deployment)
        return route, next((backend for backend in route.backends if backend.model == model), None)

    def route(self, deployment: str) -> Route:
        if (route := self.table.route(deployment)) is None:
            raise ModelNotFound(f"there is no deployment `{deployment}`", param="model")
        return route


def build_gateway(entrance: Entrance, *, max_body_bytes: int = MAX_BODY_BYTES) -> ASGIApp:
    """The ASGI application of one gateway."""
    return RequestIds(HttpGateway(entrance, max_body_bytes))


class HttpGateway:
    """Dispatches by path; every failure in OpenAI's shape. A body is read only once its token was found good."""

    def __init__(self, entrance: Entrance, max_body_bytes: int) -> None:
        self._entrance = entrance
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        request, started = Request(scope, receive), False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._dispatch(request, send_and_note)
        except RequestError as error:
            self._entrance.metrics.refused(error.code or error.kind)
            await reply(error.status, refusal(error), _headers_of(error))(scope, receive, send)
        except (ClientDisconnect, OSError):
            logger.info("request %s: the client went", request.state.request_id)
        except Exception as error:  # the process boundary: logged, and answered without a word of why
            logger.exception("request %s failed", request.state.request_id, exc_info=error)
            if not started:  # else the server sees an answer without an end, and cuts the connection
                await reply(500, server_error(request.state.request_id))(scope, receive, send)

    async def _dispatch(self, request: Request, send: Send) -> None:
        path, method = request.url.path, request.method
        if path in ("/", "/healthz", "/metrics"):
            _only(request, "GET", "HEAD")
            await (await self._open(path))(request.scope, request.receive, send)
            return
        address = request.client.host if request.client else ""
        caller = await self._entrance.caller(request.headers.get("authorization", ""), address)
        with self._entrance.admitted(caller):
            found = _PATH.fullmatch(path)
            rest = found["rest"] if found else ""
            if found and rest in _ANSWERING:
                _only(request, "POST")
                await self._answer(request, rest, found["deployment"], send)
                return
            document = await self._document(path, rest, found["deployment"] if found else None)
            if document is None:
                raise _NotFound(f"{method} {path}: not found")
            _only(request, "GET", "HEAD")
            await reply(200, document)(request.scope, request.receive, send)

    async def _open(self, path: str) -> Response:
        """What needs no token."""
        if path == "/metrics":
            numbers = await self._entrance.exposition.text(self._entrance.table)
            return Response(numbers, headers={"content-type": CONTENT_TYPE})
        return page.response() if path == "/" else reply(200, {"status": "ok"})

    async def _document(self, path: str, rest: str, deployment: str | None) -> Document | None:
        """What is read, not asked: lists and descriptions."""
        entrance = self._entrance
        if path == "/openapi.json":
            return api_document()
        entrance.catalog.keep(entrance.table)
        if rest == "/v1/models":
            routes = entrance.table.routes if deployment is None else (entrance.route(deployment),)
            return {"object": "list", "data": await entrance.catalog.cards(routes)}
        if rest.startswith(_MODEL_PATH):
            route, pinned = entrance.target(rest.removeprefix(_MODEL_PATH), deployment)
            if pinned is not None:
                return await entrance.catalog.card(route, pinned)
            return (await entrance.catalog.cards([route]))[0]
        return None

    async def _answer(self, request: Request, path: str, deployment: str | None, send: Send) -> None:
        body = await read_body(request.headers, request.receive, self._max_body_bytes, _BODY_S)
        fields = _fields(body)
        route, pinned = self._entrance.target(_model(fields), deployment)
        asked = BackendRequest(
            request.method, path, _passed_on(request.headers), body, request.state.request_id, seed=_seed(fields)
        )
        call = Call(route, asked, _key(request, fields), timeout_of(request.headers), pinned)
        await _send_while_there(self._entrance.gateway.answer(call), request.receive, send)


class _NotFound(RequestError):
    """A path that leads nowhere."""

    status = 404


class _NotAllowed(RequestError):
    """A method that the path does not have."""

    status = 405


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _send_while_there(items: AsyncGenerator[Item], receive: Receive, send: Send) -> None:
    """Send what comes; when the client goes, the work for it ends."""
    sending = asyncio.ensure_future(_send_all(items, send))
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
    finally:
        for task in (sending, gone):
            task.cancel()
        await asyncio.gather(sending, gone, return_exceptions=True)


async def _send_all(items: AsyncGenerator[Item], send: Send) -> None:
    async with aclosing(items):
        async for item in items:
            match item:
                case Head():
                    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in item.headers]
                    await send({"type": "http.response.start", "status": item.status, "headers": headers})
                case Chunk():
                    await send({"type": "http.response.body", "body": item.data, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _only(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise _NotAllowed(f"{request.method} {request.url.path}: Method Not Allowed")


def _fields(body: bytes) -> Mapping[str, Any]:
    """The body's fields, as far as routing needs them; a replica looks at the rest."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the body is no JSON") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("the body is no JSON object")
    return fields


def _model(fields: Mapping[str, Any]) -> str:
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("model: name the deployment that shall answer", param="model")
    return model


def _seed(fields: Mapping[str, Any]) -> int | None:
    """Only whether there is one matters: then the replica reads it itself."""
    return 0 if fields.get("seed") is not None else None


def _key(request: Request, fields: Mapping[str, Any]) -> str:
    """What keeps a conversation with one version."""
    given = (request.headers.get(SESSION_HEADER), fields.get("user"), fields.get("safety_identifier"))
    return next((each for each in given if isinstance(each, str) and each), str(request.state.request_id))


def timeout_of(headers: Mapping[str, str]) -> float:
    """In seconds, as the client wants it; InvalidRequest."""
    wanted = headers.get(TIMEOUT_HEADER)
    if wanted is None:
        return MAX_TIMEOUT_S
    with suppress(ValueError):
        if 0 < (seconds := float(wanted)) <= MAX_TIMEOUT_S:
            return seconds
    raise InvalidRequest(f"{TIMEOUT_HEADER}: seconds, above 0 and {MAX_TIMEOUT_S:g} at most", param=TIMEOUT_HEADER)


def _passed_on(headers: Headers) -> tuple[tuple[str, str], ...]:
    return tuple((name, headers[name]) for name in _PASSED_ON if name in headers)


def _headers_of(error: RequestError) -> dict[str, str]:
    asks = {"www-authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {}
    ends = {"connection": "close"} if isinstance(error, BodyTooLarge | BodyTooLate) else {}
    return {**retry_after(error), **asks, **ends}
