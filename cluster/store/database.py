"""Connections and transactions, and the few things that SQLite and PostgreSQL want told differently.

Write transactions are serialised on both: SQLite by BEGIN IMMEDIATE, PostgreSQL by an advisory lock. So what a write
has read stays true until it commits, and resource versions become visible in their order. Knows nothing about jobs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import URL, Connection, Engine, bindparam, create_engine, event, make_url, text, update
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cluster.clock import SteadyClock
from cluster.errors import StartUpError, StoreUnavailable
from cluster.scheduler import Rules
from cluster.store.records import StoredJob
from cluster.store.tables import log_position

_WRITE = "athanor_write"
_BUSY_TIMEOUT_MS = 10_000
_WRITE_LOCK = 0x61746861  # any number that nobody else takes; "atha"
_MIGRATION_LOCK = _WRITE_LOCK + 1
_SESSION = {
    "lock_timeout": "10s",
    # A control plane that lost its power or its network in the middle of a write keeps the others out no longer.
    "idle_in_transaction_session_timeout": "20s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_POSTGRESQL: Mapping[str, Any] = {
    "pool_pre_ping": True,
    "connect_args": {
        "connect_timeout": 10,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "options": " ".join(f"-c {name}={value}" for name, value in _SESSION.items()),
    },
}
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}",
    "PRAGMA foreign_keys=ON",
)
_TAKE_VERSIONS = (
    update(log_position).values(value=log_position.c.value + bindparam("taken")).returning(log_position.c.value)
)


def _nobody_listens(*_: object) -> None:
    """What is told where nobody counts."""


@dataclass
class Write:
    """A write transaction in progress."""

    connection: Connection
    now_us: int
    rules: Rules
    """By which places in the queue are counted."""
    changed: bool = False
    moves: list[tuple[StoredJob, StoredJob]] = field(default_factory=list)
    """Jobs before and after each step: told to whoever counts them, after the commit."""

    def next_version(self, count: int = 1) -> int:
        """Take the next resource versions, the last of which it is; whoever watches is told after the commit."""
        self.changed = True
        return int(self.connection.execute(_TAKE_VERSIONS, {"taken": count}).scalar_one())


class Database:
    """One database, migrated and ready."""

    def __init__(self, engine: Engine, clock: Callable[[], float] | None, rules: Rules) -> None:
        """Without a clock: this machine's, held steady; on PostgreSQL, which several machines share, the server's."""
        self.engine = engine
        self._rules = rules
        self._follows_server = clock is None and not self.is_sqlite
        self._ahead_us = 0
        self.on_change: Callable[[], None] = lambda: None
        self.on_move: Callable[[StoredJob, StoredJob], None] = _nobody_listens
        self.on_write: Callable[[float], None] = _nobody_listens
        self._clock, self._wall = clock or SteadyClock(), clock or time.time
        self._write_lock = threading.Lock()

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def now_us(self) -> int:
        return int(self._clock() * 1e6) + self._ahead_us

    def wall_us(self) -> int:
        """What a clock on the wall shows, even where it was set: the server's where several machines share one."""
        return self.now_us() if self._follows_server else int(self._wall() * 1e6)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view of everything."""
        with _database_errors(), self.engine.connect() as connection:
            if not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Write]:
        """Alone with the database until the block ends; committed if it ends well."""
        began = time.perf_counter()
        with _database_errors(), self._write_lock, self.engine.connect() as connection:
            connection = connection.execution_options(**{_WRITE: True})
            with connection.begin():
                if not self.is_sqlite:
                    self._take_turn(connection)
                write = Write(connection, self.now_us(), self._rules)
                yield write
        self.on_write(time.perf_counter() - began)
        for before, after in write.moves:
            self.on_move(before, after)
        if write.changed:
            self.on_change()

    def _take_turn(self, connection: Connection) -> None:
        """Wait for the lock, and see what time it is there."""
        taken = "SELECT extract(epoch FROM clock_timestamp()) * 1000000 FROM pg_advisory_xact_lock(:key)"
        there_us = int(connection.execute(text(taken), {"key": _WRITE_LOCK}).scalar_one())
        if self._follows_server:
            self._ahead_us += there_us - self.now_us()

    def close(self) -> None:
        self.engine.dispose()


@contextlib.contextmanager
def _database_errors() -> Iterator[None]:
    """A database that does not answer is worth asking again; any other error is our mistake and stays one."""
    try:
        yield
    except (OperationalError, InterfaceError, InternalError) as error:
        raise StoreUnavailable("STORE_UNAVAILABLE", f"the store did not answer: {error.orig}") from error
    except PoolTimeout as error:
        raise StoreUnavailable("STORE_UNAVAILABLE", f"the store could not be asked: {error}") from error


def open_database(url: str, clock: Callable[[], float] | None, rules: Rules) -> Database:
    """Connect and migrate to the newest tables. StartUpError, in words, when that is not possible."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        _make_private(Path(parsed.database))
    engine = create_engine(parsed) if parsed.get_backend_name() == "sqlite" else create_engine(parsed, **_POSTGRESQL)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        migrate(engine)
    except DBAPIError as error:
        engine.dispose()
        message = f"cannot open {parsed}: {error.orig}; see ATHANOR_DATABASE_URL"
        raise StartUpError("CANNOT_OPEN_STORE", message) from error
    except CommandError as error:
        engine.dispose()
        message = f"the tables of {parsed} are newer than this release ({error}); start the release that made them"
        raise StartUpError("STORE_IS_NEWER", message) from error
    return Database(engine, clock, rules)


def _make_private(path: Path) -> None:
    """What a store holds is nobody else's business; SQLite gives its side files the mode of the main one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise StartUpError("CANNOT_OPEN_STORE", f"cannot write {path}: {error}; see ATHANOR_DATABASE_URL") from error


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StartUpError("INVALID_DATABASE_URL", "ATHANOR_DATABASE_URL is not a database URL") from error
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise StartUpError("INVALID_DATABASE_URL", f"a store is sqlite or postgresql, not {backend}")
    return parsed.set(drivername="postgresql+psycopg") if backend == "postgresql" else parsed


def _prepare_sqlite(connection: Any, record: object) -> None:
    """Take transactions out of the driver's hands, and set what SQLite forgets with each connection."""
    del record
    connection.isolation_level = None
    for pragma in _PRAGMAS:
        connection.execute(pragma).close()


def _begin_sqlite(connection: Connection) -> None:
    is_write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the tables to a revision (`base`: none at all), up or down; two processes take turns."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect() as connection:
        connection = connection.execution_options(**{_WRITE: True})
        with connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            (command.downgrade if revision in _behind(config, connection) else command.upgrade)(config, revision)


def _behind(config: Config, connection: Connection) -> set[str]:
    """The revisions that these tables have been through, the present one left out. CommandError: it is not known."""
    now, scripts = MigrationContext.configure(connection).get_current_revision(), ScriptDirectory.from_config(config)
    if now is None:
        return {"base"}
    scripts.get_revision(now)
    return {"base", *(each.revision for each in scripts.iterate_revisions(now, "base"))} - {now}
