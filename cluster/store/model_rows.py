"""Versions of models in SQL. Aliases are in alias_rows.py.

Every function works inside a transaction that its caller holds. Versions are never altered. A deleted one keeps its
row, so that its number is never given again; nothing but the numbering sees it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, Text, cast, func, insert, select, tuple_, update

from cluster.errors import NotFound, PreconditionFailed
from cluster.lifecycle import TERMINAL
from cluster.store.database import Write
from cluster.store.deployment_records import Phase
from cluster.store.deployment_tables import revisions
from cluster.store.records import Publication, StoredModel
from cluster.store.tables import aliases, jobs, models

_TOLD = 8
"""So many versions are named to whoever asks for one that is not there."""


@dataclass(frozen=True)
class NewModel:
    """A version that somebody brings in from outside."""

    name: str
    path: str
    manifest_sha256: str
    num_parameters: int
    description: str = ""


def _models_by(connection: Connection, statement: Select[Any]) -> list[StoredModel]:
    rows = connection.execute(statement).all()
    keys = [(row.name, row.version) for row in rows]
    pointing: dict[tuple[str, int], list[str]] = {key: [] for key in keys}
    query = select(aliases).where(tuple_(aliases.c.name, aliases.c.version).in_(keys)).order_by(aliases.c.alias)
    for row in connection.execute(query) if keys else ():
        pointing[row.name, row.version].append(row.alias)
    return [StoredModel(**row._mapping, aliases=tuple(pointing[row.name, row.version])) for row in rows]


def _there(name: str) -> Select[Any]:
    return select(models).where(models.c.name == name, models.c.delete_time_us.is_(None))


def get_version(connection: Connection, name: str, version: int) -> StoredModel:
    """One version; NotFound / MODEL_NOT_FOUND."""
    found = _models_by(connection, _there(name).where(models.c.version == version))
    if not found:
        raise not_found(connection, name, f"{name}@{version}")
    return found[0]


def get_newest(connection: Connection, name: str) -> StoredModel:
    """The newest version; NotFound / MODEL_NOT_FOUND."""
    found = _models_by(connection, _there(name).order_by(models.c.version.desc()).limit(1))
    if not found:
        raise not_found(connection, name, name)
    return found[0]


def not_found(connection: Connection, name: str, reference: str) -> NotFound:
    """The error for a reference that means nothing, with those that do."""
    query = select(aliases.c.alias).where(aliases.c.name == name).order_by(aliases.c.alias)
    there = [f"{name}@{alias}" for alias in connection.scalars(query)]
    newest = connection.execute(_there(name).order_by(models.c.version.desc()).limit(_TOLD))
    there += [f"{name}@{row.version}" for row in newest]
    words = f"there are: {', '.join(there)}" if there else f"no model of the name {name!r} was published"
    return NotFound("MODEL_NOT_FOUND", f"there is no model {reference!r}; {words}")


def list_versions(connection: Connection, name: str, after: tuple[str, int] | None, limit: int) -> list[StoredModel]:
    """A page by name, newest version first, behind the (name, version) of the page before."""
    statement = select(models).where(models.c.delete_time_us.is_(None))
    statement = statement.order_by(models.c.name, models.c.version.desc()).limit(limit)
    if name:
        statement = statement.where(models.c.name == name)
    if after is not None:
        behind = (models.c.name > after[0]) | ((models.c.name == after[0]) & (models.c.version < after[1]))
        statement = statement.where(behind)
    return _models_by(connection, statement)


def of_job(connection: Connection, job_uid: str) -> StoredModel | None:
    """What a job has published, deleted or not."""
    found = _models_by(connection, select(models).where(models.c.job_uid == job_uid))
    return found[0] if found else None


def publish(write: Write, publication: Publication, job_uid: str) -> StoredModel:
    """Give a finished model the next version of its name."""
    row = {
        "path": publication.path,
        "manifest_sha256": publication.manifest_sha256,
        "job_uid": job_uid,
        "teachers": list(publication.teachers),
        "num_parameters": publication.num_parameters,
        "metrics": dict(publication.metrics),
        "description": "",
    }
    return _insert(write, publication.name, row)


def create(write: Write, new: NewModel) -> StoredModel:
    """Give a model from outside the next version of its name."""
    row: dict[str, Any] = {
        "path": new.path,
        "manifest_sha256": new.manifest_sha256,
        "job_uid": None,
        "teachers": [],
        "num_parameters": new.num_parameters,
        "metrics": {},
        "description": new.description,
    }
    return _insert(write, new.name, row)


def _insert(write: Write, name: str, row: dict[str, Any]) -> StoredModel:
    newest = select(func.coalesce(func.max(models.c.version), 0)).where(models.c.name == name)
    version = int(write.connection.execute(newest).scalar_one()) + 1
    values = {**row, "name": name, "version": version, "create_time_us": write.now_us}
    write.connection.execute(insert(models).values(**values))
    return get_version(write.connection, name, version)


def delete(write: Write, name: str, version: int) -> StoredModel:
    """Leave of a version only its row; PreconditionFailed / MODEL_IN_USE with whatever needs it."""
    model = get_version(write.connection, name, version)
    if users := _users(write.connection, model):
        words = ", ".join(users[:_TOLD]) + (" and others" if len(users) > _TOLD else "")
        raise PreconditionFailed("MODEL_IN_USE", f"{model.reference} is in use by {words}; end that first")
    gone = update(models).where(models.c.name == name, models.c.version == version)
    write.connection.execute(gone.values(delete_time_us=write.now_us))
    return model


def _users(connection: Connection, model: StoredModel) -> list[str]:
    """What would break without it, in words. The database looks for jobs by the text of their JSON."""
    users = [f"the alias {model.name}@{alias}" for alias in model.aliases]
    is_up = (revisions.c.model == model.reference, revisions.c.phase != Phase.GONE.value)
    served = select(revisions.c.deployment).where(*is_up).distinct()
    users += [f"the deployment {name}" for name in connection.scalars(served.order_by(revisions.c.deployment))]
    live = jobs.c.state.not_in([state.value for state in TERMINAL])
    named = cast(jobs.c.resolved_models, Text).contains(f'"{model.reference}"')
    waiting = select(jobs.c.uid).where(live, named).order_by(jobs.c.seq).limit(_TOLD + 1)
    return users + [f"the job {uid}" for uid in connection.scalars(waiting)]


def check_there(connection: Connection, references: Iterable[str]) -> None:
    """NotFound / MODEL_NOT_FOUND for a pinned version that was deleted between its check and now."""
    for reference in references:
        name, _, version = reference.rpartition("@")
        get_version(connection, name, int(version))


def known_paths(connection: Connection) -> set[str]:
    """Where the versions lie that are not deleted."""
    return set(connection.scalars(select(models.c.path).where(models.c.delete_time_us.is_(None))))
