"""Which deployments and versions there are, with their lineage, as `/v1/models` lists them.

A revision never changes, so each is asked until it has answered once, and that is remembered as long as it lives. One
that does not answer in time is listed with what the table of routes says of it, while the question stays open: a
deployment that was scaled to zero is woken once by it, and not by every listing until it is up.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from serving.backend import BackendRequest, Backends, Chunk, Head
from serving.errors import BackendFailed
from serving.routes import Backend, Route, RouteTable

_TIMEOUT_S = 5.0
_WAKING_S = 600.0
logger = logging.getLogger(__name__)
Card = dict[str, Any]
_Key = tuple[str, str]


class Catalog:
    """Cards of revisions, by application and version: an application's name may come again, for another model."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._cards: dict[_Key, Card] = {}
        self._asking: dict[_Key, asyncio.Task[Card]] = {}

    def keep(self, table: RouteTable) -> None:
        """Forget what lives no more."""
        living = {_key(backend) for route in table.routes for backend in route.backends}
        for key in self._cards.keys() - living:
            del self._cards[key]
        for key in self._asking.keys() - living:
            self._asking[key].cancel()

    async def cards(self, routes: Sequence[Route]) -> list[Card]:
        """One card for each deployment, that of its stable revision; beside it, what else lives there."""
        return [*await asyncio.gather(*(self._of_route(route) for route in routes))]

    async def card(self, route: Route, backend: Backend) -> Card:
        """Of one version, under its own name."""
        return {**await self._of_backend(route, backend), "id": backend.model}

    async def _of_route(self, route: Route) -> Card:
        stable = route.stable
        card = _unready(route.name) if stable is None else await self._of_backend(route, stable)
        versions = [
            {"model": backend.model, "revision": backend.revision, "weight": backend.weight}
            for backend in route.backends
        ]
        return {**card, "id": route.name, "versions": versions}

    async def _of_backend(self, route: Route, backend: Backend) -> Card:
        if (key := _key(backend)) not in self._cards:
            if key not in self._asking:
                self._asking[key] = asyncio.ensure_future(self._asked(backend))
                self._asking[key].add_done_callback(lambda task: self._answered(key, task))
            await asyncio.wait({self._asking[key]}, timeout=_TIMEOUT_S)
        return self._cards.get(key) or _unasked(route, backend)

    def _answered(self, key: _Key, task: asyncio.Task[Card]) -> None:
        del self._asking[key]
        if task.cancelled():
            return
        match task.exception():
            case None:
                self._cards[key] = task.result()
            case BackendFailed() | TimeoutError() as error:
                logger.info("%s: no card of its own: %s", key[0], error)
            case error:
                logger.error("%s: no card of its own", key[0], exc_info=error)

    async def _asked(self, backend: Backend) -> Card:
        async with asyncio.timeout(_WAKING_S):
            return await self._card_of(backend)

    async def _card_of(self, backend: Backend) -> Card:
        request = BackendRequest("GET", "/v1/models", (), b"", "req_catalog")
        status, body = 0, b""
        async with aclosing(self._backends.call(backend.app, request)) as items:
            async for item in items:
                match item:
                    case Head():
                        status = item.status
                    case Chunk():
                        body += item.data
        if status != 200:
            raise BackendFailed(f"a replica answered {status}")
        card: Card = json.loads(body)["data"][0]
        return card


def _key(backend: Backend) -> _Key:
    return backend.app, backend.model


def _unasked(route: Route, backend: Backend) -> Card:
    """What the table of routes says."""
    name, _, version = backend.model.rpartition("@")
    return {**_unready(route.name), "model": name, "version": int(version) if version.isdigit() else None}


def _unready(name: str) -> Card:
    return {"id": name, "object": "model", "created": 0, "owned_by": "athanor"}
