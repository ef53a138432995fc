"""Aliases of models and their history in SQL.

Every function works inside a transaction that its caller holds. Aliases move, and every move leaves a line for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from cluster.errors import Conflict, PreconditionFailed
from cluster.store import model_rows
from cluster.store.database import Write
from cluster.store.records import Publication, StoredModel
from cluster.store.tables import alias_history, aliases, models

PUBLISHED, SET_ALIAS, ROLLBACK, DELETE_ALIAS = "PUBLISHED", "SET_ALIAS", "ROLLBACK", "DELETE_ALIAS"
_CAUSES = frozenset({PUBLISHED, SET_ALIAS, ROLLBACK, DELETE_ALIAS})


@dataclass(frozen=True)
class StoredMove:
    """One move of an alias. `version` 0: it was taken away; `previous_version` 0: it was new."""

    version: int
    previous_version: int
    cause: str
    """PUBLISHED, SET_ALIAS, ROLLBACK or DELETE_ALIAS."""
    actor: str
    """Name of the token; empty for a job."""
    create_time_us: int


def get(connection: Connection, name: str, alias: str) -> StoredModel:
    """The version that an alias points at; NotFound / MODEL_NOT_FOUND."""
    version = _version(connection, name, alias)
    if not version:
        raise model_rows.not_found(connection, name, f"{name}@{alias}")
    return model_rows.get_version(connection, name, version)


def _version(connection: Connection, name: str, alias: str) -> int:
    query = select(aliases.c.version).where(aliases.c.name == name, aliases.c.alias == alias)
    return int(connection.execute(query).scalar_one_or_none() or 0)


def publish(write: Write, publication: Publication, job_uid: str) -> StoredModel:
    """Make a finished model a version, and move its alias. Once per job, however often asked."""
    known = model_rows.of_job(write.connection, job_uid)
    if known is not None:
        return known
    model = model_rows.publish(write, publication, job_uid)
    if publication.alias is None:
        return model
    return move(write, model.name, publication.alias, model.version, cause=PUBLISHED)


def move(
    write: Write, name: str, alias: str, version: int, *, cause: str, actor: str = "", expected: int | None = None
) -> StoredModel:
    """Point an alias at a version; with `expected`, only if it points there now (0: nowhere): Conflict."""
    model_rows.get_version(write.connection, name, version)
    previous = _version(write.connection, name, alias)
    _check_expected(name, alias, previous, expected)
    if previous != version:
        _store(write, name, alias, StoredMove(version, previous, cause, actor, write.now_us))
    return model_rows.get_version(write.connection, name, version)


def remove(write: Write, name: str, alias: str, actor: str, expected: int | None) -> None:
    """Take an alias away; its history stays, and goes on when it is set again."""
    now = get(write.connection, name, alias).version
    _check_expected(name, alias, now, expected)
    _store(write, name, alias, StoredMove(0, now, DELETE_ALIAS, actor, write.now_us))


def _check_expected(name: str, alias: str, now: int, expected: int | None) -> None:
    if expected is not None and expected != now:
        at = f"points at version {now}" if now else "does not exist"
        raise Conflict("ALIAS_MOVED", f"{name}@{alias} {at}, not {expected}; look again before you move it")


def _store(write: Write, name: str, alias: str, line: StoredMove) -> None:
    at = (aliases.c.name == name, aliases.c.alias == alias)
    row = {"name": name, "alias": alias}
    if not line.version:
        write.connection.execute(delete(aliases).where(*at))
    elif line.previous_version:
        write.connection.execute(update(aliases).where(*at).values(version=line.version))
    else:
        write.connection.execute(insert(aliases).values(**row, version=line.version))
    values = {"version": line.version, "previous_version": line.previous_version}
    who = {"cause": line.cause, "actor": line.actor, "create_time_us": line.create_time_us}
    write.connection.execute(insert(alias_history).values(**row, **values, **who))


def history(connection: Connection, name: str, alias: str) -> list[StoredMove]:
    """Every move, oldest first."""
    lines = alias_history.c
    query = select(alias_history).where(lines.name == name, lines.alias == alias).order_by(lines.id)
    return [
        # An older release stored the uid of the job that published.
        StoredMove(
            row.version,
            row.previous_version,
            row.cause if row.cause in _CAUSES else PUBLISHED,
            row.actor,
            row.create_time_us,
        )
        for row in connection.execute(query)
    ]


def roll_back(write: Write, name: str, alias: str, actor: str, expected: int | None) -> StoredModel:
    """Undo the last move of an alias that is not undone yet; PreconditionFailed / NO_EARLIER_VERSION."""
    now = get(write.connection, name, alias).version
    _check_expected(name, alias, now, expected)
    there = select(models.c.version).where(models.c.name == name, models.c.delete_time_us.is_(None))
    earlier = earlier_version(history(write.connection, name, alias), set(write.connection.scalars(there)))
    if earlier is None:
        message = f"{name}@{alias} points at version {now}, and at no other that is still there did it point before"
        raise PreconditionFailed("NO_EARLIER_VERSION", message)
    return move(write, name, alias, earlier, cause=ROLLBACK, actor=actor)


def earlier_version(moves: Sequence[StoredMove], there: Iterable[int]) -> int | None:
    """Where a rollback leads: one step back for each, never to and fro. Deleted versions are passed over.

    A rollback takes moves off the history as an undo does: after 1, 2, 3 the first leads to 2, the next one to 1.
    """
    stack = list[int]()
    for line in moves:
        if line.cause == ROLLBACK:
            while stack and stack[-1] != line.version:
                stack.pop()
        else:
            stack.append(line.version)
    now, kept = stack[-1] if stack else 0, set(there)
    return next((version for version in reversed(stack[:-1]) if version != now and version in kept), None)
