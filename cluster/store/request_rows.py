"""Requests that were answered before, in SQL: the same id and the same words get the same answer.

Every function works inside a transaction that its caller holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, insert, select

from cluster.errors import AlreadyExists
from cluster.store.database import Write
from cluster.store.tables import idempotency

_KNOWN = select(idempotency).where(
    idempotency.c.method.in_(bindparam("methods", expanding=True)),
    idempotency.c.request_id.in_(bindparam("ids", expanding=True)),
)
_REMEMBER = insert(idempotency)


def find(connection: Connection, method: str, request_id: str, request_sha256: str) -> str:
    """What the request made, "" for a new one; AlreadyExists / REQUEST_ID_REUSED when its id stood for another."""
    key = (method, request_id)
    return same(known(connection, [key]).get(key), *key, request_sha256)


def known(connection: Connection, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, str]]:
    """(method, id) -> (hash, what it made), of those requests that came before and have an id."""
    asked = sorted({key for key in keys if key[1]})
    if not asked:
        return {}
    by_id = select(idempotency).where(idempotency.c.request_id.in_([request_id for _, request_id in asked]))
    at = by_id.where(idempotency.c.method.in_(sorted({method for method, _ in asked})))
    return {(row.method, row.request_id): (row.request_sha256, row.response.decode()) for row in connection.execute(at)}


def same(found: tuple[str, str] | None, method: str, request_id: str, request_sha256: str) -> str:
    """What the request made that was found under the same id; as `find`."""
    if found is None:
        return ""
    sha256, made = found
    if sha256 != request_sha256:
        message = f"request id {request_id!r} was used for another {method.partition('/')[0]}; take a new one"
        raise AlreadyExists("REQUEST_ID_REUSED", message)
    return made


def remember(write: Write, made: Sequence[tuple[str, str, str, str]]) -> None:
    """Note what requests made: (method, id, hash, what). One without an id is not remembered."""
    names = ("method", "request_id", "request_sha256", "response")
    rows = [
        dict(zip(names, (*known_by, what.encode()), strict=True)) | {"create_time_us": write.now_us}
        for *known_by, what in made
        if known_by[1]
    ]
    if rows:
        write.connection.execute(_REMEMBER, rows)
