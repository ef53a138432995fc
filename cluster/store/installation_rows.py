"""Who this store belongs to, and what of a list it knows, in SQL: so that nobody takes what is wanted for an orphan.

Every function works inside a transaction that its caller holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, insert, select

from cluster.ids import new_installation_id
from cluster.lifecycle import State
from cluster.store.database import Write
from cluster.store.tables import attempts, installation, jobs

_ONLY = 1
"""The id of the one row."""
_AT_ONCE = 500


def find(connection: Connection) -> str:
    """The id of the installation, "" before the first time it was wanted."""
    return str(connection.execute(select(installation.c.uid)).scalar_one_or_none() or "")


def create(write: Write) -> str:
    """The id that this store keeps for ever."""
    known = find(write.connection)
    if known:
        return known
    uid = new_installation_id()
    write.connection.execute(insert(installation).values(id=_ONLY, uid=uid))
    return uid


def unreleased_of(connection: Connection, ray_job_ids: Sequence[str]) -> set[str]:
    """Those of these Ray jobs that belong to an attempt which may still hold something on the cluster."""
    found = set[str]()
    for some in _pieces(ray_job_ids):
        at = (attempts.c.ray_job_id.in_(some), attempts.c.released.is_(False))
        found |= set(connection.scalars(select(attempts.c.ray_job_id).where(*at)))
    return found


def states_of(connection: Connection, uids: Sequence[str]) -> dict[str, State]:
    """Of the jobs that are there, however many are asked for."""
    found = dict[str, State]()
    for some in _pieces(uids):
        rows = connection.execute(select(jobs.c.uid, jobs.c.state).where(jobs.c.uid.in_(some)))
        found |= {uid: State(state) for uid, state in rows}
    return found


def _pieces(values: Sequence[str]) -> Iterator[Sequence[str]]:
    return (values[at : at + _AT_ONCE] for at in range(0, len(values), _AT_ONCE))
