"""Deployments in SQL. Every function works inside a transaction that its caller holds."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection, delete, insert, select, update

from cluster.errors import AlreadyExists, NotFound
from cluster.store.database import Write
from cluster.store.records import DeploymentState, StoredDeployment
from cluster.store.tables import deployments


def _record(row: object) -> StoredDeployment:
    values = dict(row._mapping)  # type: ignore[attr-defined]
    return StoredDeployment(**{**values, "state": DeploymentState(values["state"])})


def find(connection: Connection, name: str) -> StoredDeployment | None:
    """One deployment, or None."""
    row = connection.execute(select(deployments).where(deployments.c.name == name)).one_or_none()
    return None if row is None else _record(row)


def get(connection: Connection, name: str) -> StoredDeployment:
    """One deployment; NotFound / DEPLOYMENT_NOT_FOUND."""
    found = find(connection, name)
    if found is None:
        raise NotFound(
            "DEPLOYMENT_NOT_FOUND", f"there is no deployment {name!r}; `athanor serve list` shows those there are"
        )
    return found


def list_all(connection: Connection) -> list[StoredDeployment]:
    """All of them, by name."""
    return [_record(row) for row in connection.execute(select(deployments).order_by(deployments.c.name))]


def create(write: Write, new: StoredDeployment) -> StoredDeployment:
    """Store a deployment; AlreadyExists / DEPLOYMENT_EXISTS when the name is taken."""
    known = find(write.connection, new.name)
    if known is not None:
        doing = "is being deleted; try again in a moment" if known.state is DeploymentState.DELETING else "exists"
        raise AlreadyExists("DEPLOYMENT_EXISTS", f"deployment {new.name!r} {doing}")
    times = {"create_time_us": write.now_us, "update_time_us": write.now_us}
    write.connection.execute(insert(deployments).values(**asdict(new) | times))
    return get(write.connection, new.name)


def note(write: Write, name: str, **values: object) -> None:
    """Store what was seen of a deployment. One that is being deleted stays so."""
    at = (deployments.c.name == name, deployments.c.state != DeploymentState.DELETING.value)
    values |= {"update_time_us": write.now_us}
    write.connection.execute(update(deployments).where(*at).values(**values))


def forget(write: Write, name: str) -> None:
    """Remove a deployment that was taken down."""
    gone = (deployments.c.name == name, deployments.c.state == DeploymentState.DELETING.value)
    write.connection.execute(delete(deployments).where(*gone))
