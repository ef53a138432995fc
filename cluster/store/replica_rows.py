"""Which control planes live on this store, and who of them holds what, in SQL.

Judged by one clock for all, see `Database.now_us`. Every function works inside a transaction that its caller holds.
"""

from __future__ import annotations

from sqlalchemy import delete, insert, select, update

from cluster.store.database import Write
from cluster.store.tables import leases, replicas


def beat(write: Write, replica_id: str, address: str, lease_s: float) -> dict[str, str]:
    """This replica lives for `lease_s` more; id -> address of all that do, and nothing is left of the others."""
    now_us = write.now_us
    values = {"address": address, "expires_us": now_us + int(lease_s * 1e6)}
    known = write.connection.execute(update(replicas).where(replicas.c.id == replica_id).values(**values))
    if known.rowcount == 0:
        write.connection.execute(insert(replicas).values(id=replica_id, **values))
    write.connection.execute(delete(replicas).where(replicas.c.expires_us < now_us))
    return {row.id: row.address for row in write.connection.execute(select(replicas).order_by(replicas.c.id))}


def take(write: Write, name: str, holder: str, lease_s: float) -> bool:
    """Whether the lease is the holder's now: it was already, or nobody's whose time is not over."""
    now_us = write.now_us
    values = {"holder": holder, "expires_us": now_us + int(lease_s * 1e6)}
    is_free = (leases.c.holder == holder) | (leases.c.expires_us < now_us)
    if write.connection.execute(update(leases).where(leases.c.name == name, is_free).values(**values)).rowcount:
        return True
    if write.connection.execute(select(leases.c.name).where(leases.c.name == name)).first() is not None:
        return False
    write.connection.execute(insert(leases).values(name=name, **values))
    return True


def leave(write: Write, replica_id: str) -> None:
    """It ends of its own will: the others need not wait for its time to be over."""
    write.connection.execute(delete(replicas).where(replicas.c.id == replica_id))
    write.connection.execute(delete(leases).where(leases.c.holder == replica_id))
