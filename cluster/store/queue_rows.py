"""The queue, quotas and the scheduler's last decision in SQL.

Every function works inside a transaction that its caller holds. What is asked in every round stays cheap however many
jobs wait: it reads the ends of indexes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from cluster.lifecycle import State
from cluster.scheduler import Quota
from cluster.standings import WORDS, Standing
from cluster.store.database import Write
from cluster.store.dependency_rows import DOOMED
from cluster.store.job_rows import jobs_by
from cluster.store.records import QueueEntry, StoredJob
from cluster.store.tables import attempts, deletions, events, jobs, projects, standings

_HOUR_US = 3.6e9
_SAME_KEY = 1e-3
"""Of a point of priority."""
_ONLY = 1
"""The id of the one row."""
_IS_QUEUED = jobs.c.state == State.QUEUED.value
_IS_RELEASING = exists().where(attempts.c.job_uid == jobs.c.uid, attempts.c.released.is_(False))


def version(connection: Connection) -> tuple[object, ...]:
    """Another one after everything that a decision depends on, but for the time, the nodes, and what was let go."""
    last_event = connection.execute(select(func.max(events.c.resource_version))).scalar_one()
    last_deletion = connection.execute(select(func.max(deletions.c.resource_version))).scalar_one()
    return last_event, last_deletion, tuple(sorted(quotas(connection).items(), key=lambda item: item[0]))


def heads(
    connection: Connection, now_us: int, most: int, behind: Mapping[str, QueueEntry] | None = None
) -> list[QueueEntry]:
    """The first `most` jobs of each project's queue that neither are held nor wait for others, in their order.

    `behind`: only of these projects, the next ones behind these.
    """
    entry = (  # in the order of QueueEntry
        *(jobs.c.uid, jobs.c.project, jobs.c.priority, jobs.c.seq, jobs.c.queue_since_us, jobs.c.queue_key),
        *(jobs.c.max_run_duration_us, jobs.c.ran_us, _IS_RELEASING.label("is_releasing")),
    )
    is_held = jobs.c.hold_until_us > now_us
    found: list[QueueEntry] = []
    for project in _projects(connection) if behind is None else behind:
        first = select(*entry).where(_IS_QUEUED, jobs.c.project == project, jobs.c.num_unmet == 0)
        first = first.where(jobs.c.hold_until_us.is_(None) | ~is_held)
        if behind is not None:
            key, seq = behind[project].queue_key, behind[project].seq
            first = first.where((jobs.c.queue_key > key) | ((jobs.c.queue_key == key) & (jobs.c.seq > seq)))
        rows = connection.execute(first.order_by(jobs.c.queue_key, jobs.c.seq).limit(most))
        found += [QueueEntry._make(row) for row in rows]
    return found


def put_in_order(write: Write) -> None:
    """Waiting jobs whose place was counted by other rules than these are put where these have them."""
    key = jobs.c.queue_since_us * (write.rules.ageing_per_hour / _HOUR_US) - jobs.c.priority
    other = func.abs(jobs.c.queue_key - key) > _SAME_KEY
    write.connection.execute(update(jobs).where(_IS_QUEUED, other).values(queue_key=key))


def _projects(connection: Connection) -> Iterator[str]:
    """Those with waiting jobs: from one to the next by the index, for DISTINCT would read it all."""
    name = ""
    while True:
        following = select(func.min(jobs.c.project)).where(_IS_QUEUED, jobs.c.project > name)
        found = connection.execute(following).scalar_one()
        if found is None:
            return
        name = found
        yield name


def doomed(connection: Connection, most: int) -> list[StoredJob]:
    """Waiting jobs that depend on one that did not succeed."""
    query = select(jobs).where(_IS_QUEUED, jobs.c.num_unmet == DOOMED)
    return jobs_by(connection, query.order_by(jobs.c.seq).limit(most))


def next_hold(connection: Connection, now_us: int) -> int | None:
    """When the next held job is held no more."""
    query = select(func.min(jobs.c.hold_until_us)).where(_IS_QUEUED, jobs.c.hold_until_us > now_us)
    found: int | None = connection.execute(query).scalar_one()
    return found


def specs_of(connection: Connection, uids: Sequence[str]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(uid, kind, spec)."""
    rows = connection.execute(select(jobs.c.uid, jobs.c.kind, jobs.c.spec).where(jobs.c.uid.in_(uids)))
    return [(row.uid, row.kind, row.spec) for row in rows]


def num_waiting(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).where(_IS_QUEUED)).scalar_one())


def states_of(connection: Connection, uids: Sequence[str]) -> dict[str, State]:
    """Of the jobs that are there."""
    rows = connection.execute(select(jobs.c.uid, jobs.c.state).where(jobs.c.uid.in_(uids)))
    return {row.uid: State(row.state) for row in rows}


def quotas(connection: Connection) -> dict[str, Quota]:
    """Of projects that have one; None in a column is no limit."""
    found = {}
    for row in connection.execute(select(projects)):
        limits = {"cpus": row.cpus, "gpus": row.gpus, "jobs": row.running_jobs}
        found[row.name] = Quota(weight=row.weight, **{key: value for key, value in limits.items() if value is not None})
    return found


def set_quota(write: Write, name: str, limits: Mapping[str, float | None], weight: float) -> None:
    """All of it: what is None is without limit."""
    values = {"cpus": limits.get("cpus"), "gpus": limits.get("gpus"), "running_jobs": limits.get("jobs")}
    write.changed = True
    changed = write.connection.execute(update(projects).where(projects.c.name == name).values(**values, weight=weight))
    if changed.rowcount == 0:
        write.connection.execute(insert(projects).values(name=name, **values, weight=weight))


def save_standings(write: Write, waiting: Mapping[str, Standing]) -> None:
    """Words that everybody knows are not stored."""
    write.connection.execute(delete(standings))
    document = [
        [uid, at, reason, "" if WORDS.get(reason) == words else words] for uid, (at, reason, words) in waiting.items()
    ]
    write.connection.execute(insert(standings).values(id=_ONLY, decision_time_us=write.now_us, waiting=document))


def load_standings(connection: Connection) -> tuple[int, dict[str, Standing]]:
    """When it was decided (0: never), and uid -> standing in order."""
    row: Any = connection.execute(select(standings)).one_or_none()
    if row is None:
        return 0, {}
    found = {uid: Standing(at, reason, words or WORDS.get(reason, "")) for uid, at, reason, words in row.waiting}
    return row.decision_time_us, found
