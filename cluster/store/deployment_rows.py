"""Deployments, their revisions and the decisions about them in SQL.

Every function works inside a transaction that its caller holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from cluster.errors import AlreadyExists, Conflict, NotFound, PreconditionFailed
from cluster.store.database import Write
from cluster.store.deployment_records import (
    Autoscaling,
    Decision,
    DeploymentState,
    Engine,
    Gate,
    Json,
    Phase,
    Revision,
    StoredDecision,
    StoredDeployment,
    Trial,
)
from cluster.store.deployment_tables import deployment_events, deployments, revisions

_KEPT = 20
_SEEN = ("state", "message", "endpoint", "observed_generation")
"""Written by what was seen, never by a decision."""
_JUDGED = (Phase.STARTING.value, Phase.CANARY.value)


def find(connection: Connection, name: str) -> StoredDeployment | None:
    """One deployment, or None."""
    row = connection.execute(select(deployments).where(deployments.c.name == name)).one_or_none()
    if row is None:
        return None
    query = select(revisions).where(revisions.c.deployment == name).order_by(revisions.c.number)
    return _record(row, [_revision(each) for each in connection.execute(query)])


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
    of_each: dict[str, list[Revision]] = {}
    for row in connection.execute(select(revisions).order_by(revisions.c.deployment, revisions.c.number)):
        of_each.setdefault(row.deployment, []).append(_revision(row))
    rows = connection.execute(select(deployments).order_by(deployments.c.name))
    return [_record(row, of_each.get(row.name, [])) for row in rows]


def create(write: Write, new: StoredDeployment, actor: str = "") -> StoredDeployment:
    """Store a deployment with its first revision; AlreadyExists / DEPLOYMENT_EXISTS when the name is taken."""
    known = find(write.connection, new.name)
    if known is not None:
        doing = "is being deleted; try again in a moment" if known.state is DeploymentState.DELETING else "exists"
        raise AlreadyExists("DEPLOYMENT_EXISTS", f"deployment {new.name!r} {doing}")
    times = {"create_time_us": write.now_us, "update_time_us": write.now_us}
    write.connection.execute(insert(deployments).values(**_columns(new) | times))
    first = Revision(1, new.resolved_model, new.path, new.cpus_per_replica, new.gpus_per_replica, engine=new.engine)
    _insert_revision(write, new.name, first)
    _add_decision(write, new.name, Decision("DEPLOYMENT_CREATED", f"asked for {new.resolved_model}", 1, actor))
    return get(write.connection, new.name)


def decide(
    write: Write, known: StoredDeployment, wanted: StoredDeployment, decisions: Sequence[Decision]
) -> StoredDeployment:
    """Store what a decision makes of a deployment; Conflict / DEPLOYMENT_CHANGED if it is no longer as it was read."""
    values = _columns(replace(wanted, generation=known.generation + 1, update_time_us=write.now_us))
    decided = {name: value for name, value in values.items() if name not in _SEEN}
    is_as_read = (deployments.c.name == known.name, deployments.c.generation == known.generation)
    alive = deployments.c.state != DeploymentState.DELETING.value
    if not write.connection.execute(update(deployments).where(*is_as_read, alive).values(**decided)).rowcount:
        raise Conflict("DEPLOYMENT_CHANGED", f"deployment {known.name!r} changed meanwhile; look again")
    before = {each.number: each for each in known.revisions}
    for each in wanted.revisions:
        _save_revision(write, known.name, before.get(each.number), each)
    for decision in decisions:
        _add_decision(write, known.name, decision)
    _prune(write, wanted)
    return get(write.connection, known.name)


def _prune(write: Write, deployment: StoredDeployment) -> None:
    """Of revisions that are gone, the newest few stay; decisions about the others do too."""
    oldest = deployment.newest.number - _KEPT
    gone = (revisions.c.deployment == deployment.name, revisions.c.phase == Phase.GONE.value)
    write.connection.execute(delete(revisions).where(*gone, revisions.c.number <= oldest))


def note(write: Write, name: str, **values: object) -> None:
    """Store what was seen of a deployment. One that is being deleted stays so."""
    at = (deployments.c.name == name, deployments.c.state != DeploymentState.DELETING.value)
    values |= {"update_time_us": write.now_us}
    write.connection.execute(update(deployments).where(*at).values(**values))


def observe(write: Write, name: str, number: int, token: str, see: Callable[[Trial], Json]) -> None:
    """Store what `see` makes of a canary's evidence; PreconditionFailed / LEASE_LOST when it is over, or not theirs."""
    at = (revisions.c.deployment == name, revisions.c.number == number)
    row = write.connection.execute(select(revisions).where(*at, revisions.c.phase.in_(_JUDGED))).one_or_none()
    trial = _revision(row).trial if row is not None else None
    if trial is None or trial.token != token:
        raise PreconditionFailed("LEASE_LOST", f"no canary {number} of {name} is judged by this judge; end at once")
    write.connection.execute(update(revisions).where(*at).values(evidence=dict(see(trial))))


def forget(write: Write, name: str) -> None:
    """Remove a deployment that was taken down, with its history: the audit log keeps who did what."""
    gone = (deployments.c.name == name, deployments.c.state == DeploymentState.DELETING.value)
    if write.connection.execute(delete(deployments).where(*gone)).rowcount:
        write.connection.execute(delete(revisions).where(revisions.c.deployment == name))
        write.connection.execute(delete(deployment_events).where(deployment_events.c.deployment == name))


def decisions_of(connection: Connection, name: str, before: int | None, limit: int) -> list[StoredDecision]:
    """A page of the history, newest first, those whose number is less than `before`."""
    wanted = select(deployment_events).where(deployment_events.c.deployment == name)
    if before is not None:
        wanted = wanted.where(deployment_events.c.number < before)
    rows = connection.execute(wanted.order_by(deployment_events.c.number.desc()).limit(limit))
    return [
        StoredDecision(
            row.number,
            row.deployment,
            row.create_time_us,
            Decision(row.reason, row.message, row.revision, row.actor, row.figures),
        )
        for row in rows
    ]


def _columns(deployment: StoredDeployment) -> dict[str, Any]:
    values = asdict(deployment)
    del values["revisions"]
    return values


def _record(row: Row[Any], found: Sequence[Revision]) -> StoredDeployment:
    values = dict(row._mapping)
    values |= {
        "state": DeploymentState(row.state),
        "autoscaling": Autoscaling(**row.autoscaling) if row.autoscaling else None,
        "gate": _gate(row.gate) if row.gate else None,
        "engine": Engine(**row.engine) if row.engine else None,
    }
    return StoredDeployment(**values, revisions=tuple(found))


def _revision(row: Row[Any]) -> Revision:
    values = dict(row._mapping)
    del values["deployment"]
    trial, evidence = values.pop("trial"), values.pop("evidence")
    values |= {"phase": Phase(row.phase), "engine": Engine(**row.engine) if row.engine else None}
    return Revision(**values, trial=_trial(trial, evidence) if trial else None)


def _trial(stored: dict[str, Any], evidence: Json) -> Trial:
    """One of an earlier release has not all that is kept of one now."""
    return Trial(**{**stored, "gate": _gate(stored["gate"])}, evidence=evidence)


def _gate(stored: dict[str, Any]) -> Gate:
    return Gate(**{**stored, "steps": tuple(stored.get("steps", ()))})


def _revision_columns(revision: Revision) -> dict[str, Any]:
    """All but the evidence, which is not decided."""
    values = asdict(revision)
    if revision.trial is not None:
        del values["trial"]["evidence"]
    return values


def _insert_revision(write: Write, name: str, new: Revision) -> None:
    times = {"create_time_us": write.now_us, "phase_time_us": write.now_us}
    values = _revision_columns(new) | times
    write.connection.execute(insert(revisions).values(deployment=name, evidence={}, **values))


def _save_revision(write: Write, name: str, known: Revision | None, wanted: Revision) -> None:
    if known is None:
        _insert_revision(write, name, wanted)
    elif known != wanted:
        values = _revision_columns(wanted)
        if known.phase is not wanted.phase:
            values["phase_time_us"] = write.now_us
        at = (revisions.c.deployment == name, revisions.c.number == wanted.number)
        write.connection.execute(update(revisions).where(*at).values(**values))


def _add_decision(write: Write, name: str, decision: Decision) -> None:
    values = {**asdict(decision), "figures": dict(decision.figures)}
    write.connection.execute(insert(deployment_events).values(deployment=name, create_time_us=write.now_us, **values))
