"""The audit log in SQL: numbered without a gap, each entry sealed by a hash over the one before.

Every function works inside a transaction that its caller holds. What is worth an entry is `security/audit.py`'s affair.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from cluster.store.database import Write
from cluster.store.tables import audit

FIRST_HASH = "0" * 64
"""What the first entry holds as the hash before it."""
_BATCH = 1000
_LAST = select(audit.c.number, audit.c.hash).order_by(audit.c.number.desc()).limit(1)
_APPEND = insert(audit)


@dataclass(frozen=True)
class Call:
    """What is written of one call."""

    actor: str
    peer: str
    method: str
    resource: str
    code: str
    reason: str
    request_id: str


@dataclass(frozen=True)
class StoredEntry:
    """A call at its place in the chain."""

    number: int
    create_time_us: int
    call: Call
    hash: str

    def seal(self, before: str) -> str:
        """The hash that it must have behind `before`: SHA-256 over a JSON list of that and of all fields."""
        fields = [before, self.number, self.create_time_us, *vars(self.call).values()]
        return hashlib.sha256(json.dumps(fields, separators=(",", ":")).encode()).hexdigest()


def append(write: Write, calls: Sequence[Call]) -> list[StoredEntry]:
    """Add entries in this order."""
    number, head = write.connection.execute(_LAST).one_or_none() or (0, FIRST_HASH)
    entries = []
    for number, call in enumerate(calls, start=number + 1):  # noqa: B020  goes on where the log ends
        entry = StoredEntry(number, write.now_us, call, "")
        head = entry.seal(head)
        entries.append(StoredEntry(number, write.now_us, call, head))
    rows = [
        {"number": each.number, "create_time_us": each.create_time_us, "hash": each.hash, **vars(each.call)}
        for each in entries
    ]
    if rows:
        write.connection.execute(_APPEND, rows)
    return entries


@dataclass(frozen=True)
class Wanted:
    """Which entries; empty fields say nothing."""

    actor: str = ""
    resource: str = ""
    """Only about what begins with it."""
    since_us: int = 0


def page(connection: Connection, before: int | None, of: Wanted, limit: int) -> list[StoredEntry]:
    """Newest first, those whose number is less than `before`."""
    wanted = select(audit).order_by(audit.c.number.desc()).limit(limit)
    if before is not None:
        wanted = wanted.where(audit.c.number < before)
    if of.actor:
        wanted = wanted.where(audit.c.actor == of.actor)
    if of.resource:
        wanted = wanted.where(audit.c.resource.startswith(of.resource, autoescape=True))
    if of.since_us:
        wanted = wanted.where(audit.c.create_time_us >= of.since_us)
    return [_entry(row) for row in connection.execute(wanted)]


def in_order(connection: Connection) -> Iterator[StoredEntry]:
    """All of them, oldest first, read in batches."""
    after = None
    while True:
        wanted = select(audit).order_by(audit.c.number).limit(_BATCH)
        rows = connection.execute(wanted if after is None else wanted.where(audit.c.number > after)).all()
        yield from map(_entry, rows)
        if len(rows) < _BATCH:
            return
        after = rows[-1].number


def _entry(row: Row[Any]) -> StoredEntry:
    values = row._asdict()
    number, time_us, sealed = (values.pop(name) for name in ("number", "create_time_us", "hash"))
    return StoredEntry(number, time_us, Call(**values), sealed)
