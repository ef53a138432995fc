"""A simulated Ray for each storm, a PostgreSQL for those that share one, and the table of all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from own_postgres import new_database
from own_postgres import postgres as postgres
from sim_ray import SimRay
from storm import SEED, StormTable


@pytest.fixture(scope="session")
def storm_table() -> Iterator[StormTable]:
    table = StormTable()
    yield table
    print("", f"seed {SEED}, {table.num_jobs} jobs", *table.lines, sep="\n")


@pytest.fixture
def sim_ray() -> Iterator[SimRay]:
    with SimRay(SEED).running() as ray:
        yield ray


@pytest.fixture
def postgres_url(postgres: str) -> str:
    return new_database(postgres)
