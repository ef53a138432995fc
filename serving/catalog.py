"""Which deployments and versions there are, with their lineage, as `/v1/models` lists them.

A revision never changes, so each is asked once and remembered; one that does not answer is listed with what the table
of routes says of it. Asking may wake a deployment that was scaled to zero, once in the life of a gateway.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from serving.backend import BackendRequest, Backends, Chunk, Head
from serving.errors import BackendFailed
from serving.routes import Backend, Route

_TIMEOUT_S = 5.0
Card = dict[str, Any]


class Catalog:
    """Cards of revisions, by the name of their application."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._cards: dict[str, Card] = {}

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
        if backend.app not in self._cards:
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    self._cards[backend.app] = await self._asked(backend)
            except (BackendFailed, TimeoutError):
                name, _, version = backend.model.rpartition("@")
                return {**_unready(route.name), "model": name, "version": int(version) if version.isdigit() else None}
        return self._cards[backend.app]

    async def _asked(self, backend: Backend) -> Card:
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


def _unready(name: str) -> Card:
    return {"id": name, "object": "model", "created": 0, "owned_by": "athanor"}
