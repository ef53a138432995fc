"""The queue and the projects as people see them, in SQL.

Every function works inside a transaction that its caller holds. How the scheduler reads the queue is in queue_rows.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, case, func, select

from cluster.lifecycle import State
from cluster.store.queue_rows import load_standings
from cluster.store.tables import jobs, projects

_AT_ONCE = 500
_WAITS = jobs.c.state == State.QUEUED.value


@dataclass(frozen=True)
class Place:
    """A job that waits, and where."""

    uid: str
    project: str
    priority: int
    since_us: int
    is_held: bool
    position: int = 0
    reason: str = ""
    """As the scheduler last said; empty while it has not come to it."""
    words: str = ""


@dataclass(frozen=True)
class Line:
    """A piece of the queue, from its head on."""

    decision_time_us: int
    places: Sequence[Place]
    num_waiting: int


def line(connection: Connection, now_us: int, scope: Sequence[str] | None, limit: int) -> Line:
    """The first `limit` jobs of these projects (None: of all), each with its position among all jobs that wait.

    First those of the scheduler's last decision that still wait, then the others, and last those that are held.
    """
    decided_us, standings = load_standings(connection)
    seen = {place.uid: place for place in _places(connection, now_us, list(standings))}
    order = [replace(seen[uid], reason=one.reason, words=one.message) for uid, one in standings.items() if uid in seen]
    most = limit + len(standings) if scope is None else None
    order += [place for place in _others(connection, now_us, most) if place.uid not in seen]
    numbered = (replace(place, position=at) for at, place in enumerate(order, start=1))
    reached = [place for place in numbered if scope is None or place.project in scope]
    count = connection.execute(select(func.count()).where(_WAITS)).scalar_one()
    return Line(decided_us, reached[:limit], int(count))


def _places(connection: Connection, now_us: int, uids: Sequence[str]) -> Iterator[Place]:
    for some in (uids[at : at + _AT_ONCE] for at in range(0, len(uids), _AT_ONCE)):
        for row in connection.execute(select(*_COLUMNS).where(_WAITS, jobs.c.uid.in_(some))):
            yield _place(row, now_us)


def _others(connection: Connection, now_us: int, limit: int | None) -> list[Place]:
    is_held = case((jobs.c.hold_until_us > now_us, 1), else_=0)
    query = select(*_COLUMNS).where(_WAITS).order_by(is_held, jobs.c.queue_key, jobs.c.seq).limit(limit)
    return [_place(row, now_us) for row in connection.execute(query)]


_COLUMNS = (
    jobs.c.uid,
    jobs.c.project,
    jobs.c.priority,
    func.coalesce(jobs.c.queue_since_us, jobs.c.create_time_us).label("since_us"),
    jobs.c.hold_until_us,
)


def _place(row: Any, now_us: int) -> Place:
    is_held = (row.hold_until_us or 0) > now_us
    return Place(row.uid, row.project, row.priority, row.since_us, is_held)


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
