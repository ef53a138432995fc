"""Models, aliases and the history of aliases in SQL.

Every function works inside a transaction that its caller holds. Versions are never altered; aliases move, and every
move leaves a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select, tuple_, update

from cluster.errors import Conflict, NotFound
from cluster.store.database import Write
from cluster.store.records import Publication, StoredModel
from cluster.store.tables import alias_history, aliases, models


def _models_by(connection: Connection, statement: Select[Any]) -> list[StoredModel]:
    rows = connection.execute(statement).all()
    keys = [(row.name, row.version) for row in rows]
    pointing: dict[tuple[str, int], list[str]] = {key: [] for key in keys}
    query = select(aliases).where(tuple_(aliases.c.name, aliases.c.version).in_(keys)).order_by(aliases.c.alias)
    for row in connection.execute(query) if keys else ():
        pointing[row.name, row.version].append(row.alias)
    return [StoredModel(**row._mapping, aliases=tuple(pointing[row.name, row.version])) for row in rows]


def get_version(connection: Connection, name: str, version: int) -> StoredModel:
    """One version; NotFound / MODEL_NOT_FOUND."""
    found = _models_by(connection, select(models).where(models.c.name == name, models.c.version == version))
    if not found:
        raise _not_found(connection, name, f"{name}@{version}")
    return found[0]


def get_alias(connection: Connection, name: str, alias: str) -> StoredModel:
    """The version that an alias points at; NotFound / MODEL_NOT_FOUND."""
    version = _alias_version(connection, name, alias)
    if not version:
        raise _not_found(connection, name, f"{name}@{alias}")
    return get_version(connection, name, version)


def get_newest(connection: Connection, name: str) -> StoredModel:
    """The newest version; NotFound / MODEL_NOT_FOUND."""
    version = _newest_version(connection, name)
    if not version:
        raise _not_found(connection, name, name)
    return get_version(connection, name, version)


def _not_found(connection: Connection, name: str, reference: str) -> NotFound:
    query = select(aliases.c.alias).where(aliases.c.name == name).order_by(aliases.c.alias)
    there = [f"{name}@{alias}" for alias in connection.scalars(query)]
    newest = _newest_version(connection, name)
    there += [f"{name}@1 to {name}@{newest}" if newest > 1 else f"{name}@1"] if newest else []
    words = f"there are: {', '.join(there)}" if there else f"no model of the name {name!r} was published"
    return NotFound("MODEL_NOT_FOUND", f"there is no model {reference!r}; {words}")


def _newest_version(connection: Connection, name: str) -> int:
    query = select(func.coalesce(func.max(models.c.version), 0)).where(models.c.name == name)
    return int(connection.execute(query).scalar_one())


def _alias_version(connection: Connection, name: str, alias: str) -> int:
    query = select(aliases.c.version).where(aliases.c.name == name, aliases.c.alias == alias)
    return int(connection.execute(query).scalar_one_or_none() or 0)


def list_versions(connection: Connection, name: str, after: tuple[str, int] | None, limit: int) -> list[StoredModel]:
    """A page by name, newest version first, behind the (name, version) of the page before."""
    statement = select(models).order_by(models.c.name, models.c.version.desc()).limit(limit)
    if name:
        statement = statement.where(models.c.name == name)
    if after is not None:
        behind = (models.c.name > after[0]) | ((models.c.name == after[0]) & (models.c.version < after[1]))
        statement = statement.where(behind)
    return _models_by(connection, statement)


def publish(write: Write, publication: Publication, job_uid: str) -> StoredModel:
    """Give a finished model the next version of its name, and move its alias. Once per job, however often asked."""
    known = _models_by(write.connection, select(models).where(models.c.job_uid == job_uid))
    if known:
        return known[0]
    version = _newest_version(write.connection, publication.name) + 1
    row = {
        "name": publication.name,
        "version": version,
        "path": publication.path,
        "manifest_sha256": publication.manifest_sha256,
        "job_uid": job_uid,
        "teachers": list(publication.teachers),
        "num_parameters": publication.num_parameters,
        "metrics": dict(publication.metrics),
        "create_time_us": write.now_us,
    }
    write.connection.execute(insert(models).values(**row))
    if publication.alias is not None:
        move_alias(write, publication.name, publication.alias, version, cause=job_uid)
    return get_version(write.connection, publication.name, version)


def move_alias(
    write: Write, name: str, alias: str, version: int, *, cause: str, expected: int | None = None
) -> StoredModel:
    """Point an alias at a version; with `expected`, only if it points there now (0: nowhere): Conflict."""
    get_version(write.connection, name, version)
    previous = _alias_version(write.connection, name, alias)
    if expected is not None and expected != previous:
        at = f"points at version {previous}" if previous else "does not exist"
        raise Conflict("ALIAS_MOVED", f"{name}@{alias} {at}, not {expected}; look again before you move it")
    if previous != version:
        _store_alias(write, name, alias, version, previous, cause)
    return get_version(write.connection, name, version)


def _store_alias(write: Write, name: str, alias: str, version: int, previous: int, cause: str) -> None:
    at = (aliases.c.name == name, aliases.c.alias == alias)
    moved = update(aliases).where(*at).values(version=version)
    write.connection.execute(moved if previous else insert(aliases).values(name=name, alias=alias, version=version))
    line = {"name": name, "alias": alias, "version": version, "previous_version": previous, "cause": cause}
    write.connection.execute(insert(alias_history).values(**line, create_time_us=write.now_us))


def list_alias_history(connection: Connection, name: str, alias: str) -> Sequence[tuple[int, int, str]]:
    """(version, previous version, cause) of every move, oldest first."""
    history = alias_history.c
    query = select(history.version, history.previous_version, history.cause)
    rows = connection.execute(query.where(history.name == name, history.alias == alias).order_by(history.id))
    return [(row.version, row.previous_version, row.cause) for row in rows]
