"""Both databases for real (a SQLite file, a PostgreSQL that the tests start and end), and a real gRPC server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from control_plane import ControlPlane, ScriptedRay, served
from own_postgres import new_database
from own_postgres import postgres as postgres

from cluster.settings import Settings
from cluster.store.store import Store


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'athanor.db'}"
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def open_store(database_url: str) -> Iterator[Callable[[], Store]]:
    """Opens the same database as often as a test wants."""
    opened: list[Store] = []

    def open_once() -> Store:
        opened.append(Store.open(database_url))
        return opened[-1]

    yield open_once
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], Store]) -> Store:
    return open_store()


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    settings = Settings(home=tmp_path, listen="127.0.0.1:0", shutdown_grace_s=1.0, reconcile_interval_s=0.2)
    async with served(settings, ScriptedRay()) as plane:
        yield plane
