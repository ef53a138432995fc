"""The queue and the projects as people see them, in SQL.

Every function works inside a transaction that its caller holds. How the scheduler reads the queue is in queue_rows.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, case, func, select

from cluster.lifecycle import State
from cluster.standings import Standing, standing_of
from cluster.store.job_rows import jobs_by
from cluster.store.queue_rows import load_standings
from cluster.store.records import StoredJob
from cluster.store.tables import jobs, projects

_AT_ONCE = 500
_WAITS = jobs.c.state == State.QUEUED.value


class _Entry(NamedTuple):
    """A job that waits, as far as its place goes."""

    uid: str
    project: str
    key: tuple[Any, ...]


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
    seen = {entry.uid: entry for entry in _waiting_of(connection, now_us, list(known))}
    first = [(seen[uid], at) for at, uid in enumerate((uid for uid in known if uid in seen), start=1)]
    order = [(entry.uid, at) for entry, at in first if scope is None or entry.project in scope]
    keys = sorted(entry.key for entry in seen.values())
    for entry, at in _numbered(connection, now_us, scope, limit + len(order)):
        if entry.uid not in seen:
            order.append((entry.uid, len(first) + at - bisect_left(keys, entry.key)))
    page = dict(order[:limit])
    found = {job.uid: job for some in _pieces(list(page)) for job in jobs_by(connection, _these(some))}
    places = [
        Place(found[uid], at, standing)
        for uid, at in page.items()
        if (standing := standing_of(found[uid], decided_us, known, now_us)) is not None
    ]
    count = connection.execute(select(func.count()).where(_WAITS)).scalar_one()
    return Line(decided_us, places, int(count))


def _columns(now_us: int) -> tuple[ColumnElement[Any], ...]:
    """Uid and project, then the key of the queue: what is held or waits for others comes last."""
    stands_apart = case((jobs.c.hold_until_us > now_us, 1), (jobs.c.num_unmet != 0, 1), else_=0).label("stands_apart")
    return jobs.c.uid, jobs.c.project, stands_apart, jobs.c.queue_key, jobs.c.seq


def _waiting_of(connection: Connection, now_us: int, uids: Sequence[str]) -> Iterator[_Entry]:
    query = select(*_columns(now_us)).where(_WAITS)
    for some in _pieces(uids):
        for uid, project, *key in connection.execute(query.where(jobs.c.uid.in_(some))):
            yield _Entry(uid, project, tuple(key))


def _numbered(
    connection: Connection, now_us: int, scope: Sequence[str] | None, limit: int
) -> Iterator[tuple[_Entry, int]]:
    """The first of these projects by the queue's key, each with its number among all that wait."""
    columns = _columns(now_us)
    _, _, *key = columns
    if scope is None:  # then the first are the first of all, and nobody has to number the rest
        rows = connection.execute(select(*columns).where(_WAITS).order_by(*key).limit(limit))
        numbers: Iterable[tuple[int, Any]] = enumerate(rows, start=1)
    else:
        every = select(func.row_number().over(order_by=key).label("at"), *columns).where(_WAITS).subquery()
        ours = select(every).where(every.c.project.in_(scope)).order_by(every.c.at).limit(limit)
        numbers = ((row[0], row[1:]) for row in connection.execute(ours))
    for at, (uid, project, *values) in numbers:
        yield _Entry(uid, project, tuple(values)), at


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
