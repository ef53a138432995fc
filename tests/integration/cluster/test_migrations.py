from __future__ import annotations

from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect

from cluster.errors import StartUpError
from cluster.store.database import migrate
from cluster.store.store import Store
from cluster.store.tables import metadata


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


def test_migrated_tables_are_those_of_the_code(engine: Engine) -> None:
    migrate(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_up_down_and_up_again(engine: Engine, database_url: str) -> None:
    migrate(engine)
    migrate(engine, "base")
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    migrate(engine)
    store = Store.open(database_url)
    assert store.head_version() == 0
    store.close()


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "sqlite:////proc/none/athanor.db"])
def test_store_that_cannot_be_opened_is_told_in_words(url: str) -> None:
    with pytest.raises(StartUpError) as caught:
        Store.open(url)
    assert "ATHANOR_DATABASE_URL" in caught.value.message or "sqlite or postgresql" in caught.value.message


def test_password_is_not_told() -> None:
    with pytest.raises(StartUpError) as caught:
        Store.open("postgresql://somebody:s3cret@127.0.0.1:1/athanor")
    assert "s3cret" not in caught.value.message
