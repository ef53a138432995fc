"""The queue and the projects as people see them, in SQL.

Every function works inside a transaction that its caller holds. How the scheduler reads the queue is in queue_rows.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, func, select

from cluster.lifecycle import State
from cluster.standings import Standing, standing_of
from cluster.store.job_rows import jobs_by
from cluster.store.queue_rows import load_standings
from cluster.store.records import StoredJob
from cluster.store.tables import jobs, projects

_AT_ONCE = 500
_WAITS = jobs.c.state == State.QUEUED.value
_Entry = tuple[str, str]
"""Uid and project."""


@dataclass(frozen=True)
class Place:
    """A job that waits, and where."""

    job: StoredJob
    position: int
    """Among all jobs that wait, also those that the scheduler has not numbered."""
    standing: Standing


@dataclass(frozen=True)
class Line:
    """A piece of the queue, from its head on."""

    decision_time_us: int
    places: Sequence[Place]
    num_waiting: int


def line(connection: Connection, now_us: int, scope: Sequence[str] | None, limit: int) -> Line:
    """The first `limit` jobs of these projects (None: of all), each with its position among all jobs that wait.

    First those of the scheduler's last decision that still wait, then the others, and last those that are held or wait
    for other jobs.
    """
    decided_us, known = load_standings(connection)
    seen = dict(_waiting_of(connection, list(known)))
    order = [(uid, seen[uid]) for uid in known if uid in seen]
    most = limit + len(known) if scope is None else None
    order += [entry for entry in _others(connection, now_us, most) if entry[0] not in seen]
    numbered = [(uid, at) for at, (uid, project) in enumerate(order, start=1) if scope is None or project in scope]
    page = dict(numbered[:limit])
    found = {job.uid: job for some in _pieces(list(page)) for job in jobs_by(connection, _these(some))}
    places = [
        Place(found[uid], at, standing)
        for uid, at in page.items()
        if uid in found and (standing := standing_of(found[uid], decided_us, known, now_us)) is not None
    ]
    count = connection.execute(select(func.count()).where(_WAITS)).scalar_one()
    return Line(decided_us, places, int(count))


def _waiting_of(connection: Connection, uids: Sequence[str]) -> list[_Entry]:
    query = select(jobs.c.uid, jobs.c.project)
    found = (connection.execute(query.where(_WAITS, jobs.c.uid.in_(some))) for some in _pieces(uids))
    return [(uid, project) for rows in found for uid, project in rows]


def _others(connection: Connection, now_us: int, limit: int | None) -> list[_Entry]:
    stands_apart: ColumnElement[int] = case((jobs.c.hold_until_us > now_us, 1), (jobs.c.num_unmet != 0, 1), else_=0)
    query = select(jobs.c.uid, jobs.c.project).where(_WAITS)
    rows = connection.execute(query.order_by(stands_apart, jobs.c.queue_key, jobs.c.seq).limit(limit))
    return [(uid, project) for uid, project in rows]


def _these(uids: Sequence[str]) -> Select[Any]:
    return select(jobs).where(jobs.c.uid.in_(uids))


def _pieces(uids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (uids[at : at + _AT_ONCE] for at in range(0, len(uids), _AT_ONCE))


def project_names(connection: Connection) -> list[str]:
    """Of every project that has a quota or a job, by name. Jobs are not counted through: each step finds the next."""
    found, last = set(connection.scalars(select(projects.c.name))), ""
    while True:
        following = select(func.min(jobs.c.project)).where(jobs.c.project > last)
        name = connection.execute(following).scalar_one_or_none()
        if name is None:
            return sorted(found)
        found.add(name)
        last = name


def num_waiting_of(connection: Connection) -> dict[str, int]:
    """Project -> jobs that wait; projects without are left out."""
    query = select(jobs.c.project, func.count()).where(_WAITS).group_by(jobs.c.project)
    return {project: int(count) for project, count in connection.execute(query)}
