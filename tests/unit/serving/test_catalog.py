"""Cards of what lives: asked once, and forgotten with it."""

from __future__ import annotations

import asyncio
import json

import pytest
from fake_backends import table

from serving.backend import Chunk, Head
from serving.catalog import Catalog
from serving.errors import BackendFailed
from serving.routes import Backend, Route, RouteTable

APP = "support-bot--r1"


class Cards:
    """Replicas that answer with their version, once they may."""

    def __init__(self) -> None:
        self.version = 1
        self.asked = 0
        self.up = asyncio.Event()
        self.up.set()
        self.error: Exception | None = None

    async def call(self, app, request):
        self.asked += 1
        await self.up.wait()
        if self.error:
            raise self.error
        yield Head(200, ())
        yield Chunk(
            json.dumps({"data": [{"id": "support-bot", "version": self.version, "teachers": ["t@1"]}]}).encode()
        )

    async def figures(self, app):
        return []


@pytest.fixture
def backends():
    return Cards()


def of(model: str) -> RouteTable:
    backend = Backend(app=APP, model=model, revision=1, weight=10_000)
    return RouteTable(routes=(Route(name="support-bot", backends=(backend,)),))


async def listed(catalog: Catalog, table: RouteTable) -> dict:
    catalog.keep(table)
    [card] = await catalog.cards(table.routes)
    return card


async def test_a_deployment_that_was_deleted_and_made_anew_has_its_new_card(backends):
    catalog = Catalog(backends)
    assert (await listed(catalog, of("student@1")))["version"] == 1
    backends.version = 2
    assert (await listed(catalog, of("student@2")))["version"] == 2  # under the same application name
    backends.version = 3
    assert (await listed(catalog, of("student@1")))["version"] == 3  # what was not in the table was forgotten


async def test_one_that_is_being_woken_is_asked_once_and_listed_meanwhile(backends, monkeypatch):
    monkeypatch.setattr("serving.catalog._TIMEOUT_S", 0.01)
    backends.up.clear()
    catalog, routes = Catalog(backends), table(10_000)
    for _ in range(3):
        card = await listed(catalog, routes)
        assert (card["model"], card["version"], "teachers" in card) == ("support-student", 1, False)
    backends.up.set()
    monkeypatch.setattr("serving.catalog._TIMEOUT_S", 5)
    assert (await listed(catalog, routes))["teachers"] == ["t@1"]
    assert backends.asked == 1


async def test_one_that_failed_is_asked_again(backends):
    backends.error = BackendFailed("died")
    catalog = Catalog(backends)
    assert "teachers" not in await listed(catalog, table(10_000))
    backends.error = None
    assert "teachers" in await listed(catalog, table(10_000))


async def test_nobody_waits_for_one_that_went_while_it_was_asked(backends, monkeypatch):
    monkeypatch.setattr("serving.catalog._TIMEOUT_S", 0.01)
    backends.up.clear()
    catalog = Catalog(backends)
    await listed(catalog, table(10_000))
    [asking] = catalog._asking.values()
    catalog.keep(RouteTable())
    await asyncio.wait({asking}, timeout=5)
    assert asking.cancelled()
    assert not catalog._asking
