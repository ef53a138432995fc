"""Replicas in this process: the real API over an engine, reached as a gateway reaches replicas, and mortal."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager

import httpx
import pytest
import uvicorn

from serving.auth import Caller, Callers
from serving.backend import Chunk, Head, respond
from serving.engine import Load
from serving.errors import BackendFailed, Unauthenticated
from serving.gateway_http import Entrance, build_gateway
from serving.loading import LoadedModel, load
from serving.model_dir import Lineage, verify
from serving.openai_api import ModelCard, build_api
from serving.routes import Backend, Route, RouteTable

LINEAGE = Lineage("support-bot-7k2m9qxa", ("support-teacher@3",), "ab" * 32)
QUESTION = [{"role": "user", "content": "Where is my card?"}]
TOKEN = {"authorization": "Bearer good"}
STABLE, CANARY = "support-bot--r1", "support-bot--r2"


@pytest.fixture(scope="session")
def loaded(chat_model_dir):
    """The model of `chat_model_dir`, for tests outside of tests/unit/serving."""
    model = load(verify(chat_model_dir))
    yield model
    model.engine.close()


def card(version: int, deployment: str = "support-bot") -> ModelCard:
    return ModelCard(deployment, "support-student", version, 1_700_000_000, LINEAGE)


class LocalBackends:
    """One application per revision. `kills[app]` holds, for each call to come, after how many items it dies."""

    def __init__(self, **models) -> None:
        self.apis = {
            app: build_api(card(version, app.partition("--")[0]), model) for app, (version, model) in models.items()
        }
        self.kills: dict[str, list[int | None]] = {}
        self.calls: list[tuple[str, object]] = []
        self.closed = Counter()
        self.metrics: dict[str, list] = {}

    async def call(self, app, request):
        self.calls.append((app, request))
        mortal = self.kills.get(app) or [None]
        left = mortal.pop(0)
        if left == 0 or app not in self.apis:
            raise BackendFailed("the replica died")
        try:
            async with aclosing(respond(self.apis[app], request)) as items:
                async for item in items:
                    yield item
                    left = None if left is None else left - 1
                    if left == 0:
                        raise BackendFailed("the replica died")
        finally:
            self.closed[app] += 1

    async def figures(self, app):
        return self.metrics.get(app, [])


class Scripted:
    """Answers every call with the same items, or raises."""

    def __init__(self, *items) -> None:
        self.items = items
        self.calls = []

    async def call(self, app, request):
        self.calls.append((app, request))
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item

    async def figures(self, app):
        return []


def whole(status: int, data: bytes = b"{}") -> tuple:
    return Head(status, (("content-type", "application/json"),)), Chunk(data)


class GoodToken:
    """A directory that knows one token."""

    def __init__(self) -> None:
        self.asked = 0

    async def caller(self, authorization):
        self.asked += 1
        if authorization != TOKEN["authorization"]:
            raise Unauthenticated("this control plane does not know the token that was sent")
        return Caller("k3m9x2pq", "me")

    async def aclose(self):
        pass


def table(*weights: int, auth: str = "token", mirror=None) -> RouteTable:
    """`support-bot` with revisions of these weights: version n is revision n."""
    backends = tuple(
        Backend(app=f"support-bot--r{n}", model=f"support-student@{n}", revision=n, weight=weight)
        for n, weight in enumerate(weights, 1)
    )
    return RouteTable(routes=(Route(name="support-bot", backends=backends, mirror=mirror),), auth=auth)


def entrance(backends, routes=None, **options) -> Entrance:
    return Entrance(backends, Callers(GoodToken()), table=routes or table(10_000), **options)


def http_client(entrance: Entrance, **options) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build_gateway(entrance, **options), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=TOKEN)


@asynccontextmanager
async def listening(app):
    """Serve an ASGI application over real HTTP on a free port; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none", lifespan="off"))
    task = asyncio.ensure_future(server.serve())
    async with asyncio.timeout(30):
        while not server.started:
            await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


class WordPooling:
    """Labels and vectors that tell the texts apart: by their length in tokens."""

    context_length = 32
    load = Load(running=0, waiting=0)
    labels = ("arrival", "top_up", "other")
    exclusive = True

    async def classify(self, texts):
        return [(0.25, 0.5, 0.25) if len(text) % 2 else (0.7, 0.1, 0.2) for text in texts]

    async def embed(self, texts):
        return [(float(len(text)), -0.5, 0.125) for text in texts]

    def close(self):
        pass


def pooling_model(prompts) -> LoadedModel:
    return LoadedModel(frozenset({"classify", "embed"}), prompts, pooling=WordPooling())


@contextmanager
def listening_in_thread(app):
    """The same for clients that block."""
    with ThreadPoolExecutor(1) as pool:
        address, stop = Future(), asyncio.Event()

        async def live():
            async with listening(app) as at:
                address.set_result((at, asyncio.get_running_loop()))
                await stop.wait()

        living = pool.submit(asyncio.run, live())
        at, loop = address.result(60)
        try:
            yield at
        finally:
            loop.call_soon_threadsafe(stop.set)
            living.result(60)
