"""Requests that were answered before, in SQL: the same id and the same words get the same answer.

Every function works inside a transaction that its caller holds.
"""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from cluster.errors import AlreadyExists
from cluster.store.database import Write
from cluster.store.tables import idempotency


def find(connection: Connection, method: str, request_id: str, request_sha256: str) -> str:
    """What the request made, "" for a new one; AlreadyExists / REQUEST_ID_REUSED when its id stood for another."""
    if not request_id:
        return ""
    at = (idempotency.c.method == method, idempotency.c.request_id == request_id)
    row = connection.execute(select(idempotency).where(*at)).one_or_none()
    if row is None:
        return ""
    if row.request_sha256 != request_sha256:
        message = f"request id {request_id!r} was used for another {method.partition('/')[0]}; take a new one"
        raise AlreadyExists("REQUEST_ID_REUSED", message)
    return str(row.response.decode())


def remember(write: Write, method: str, request_id: str, request_sha256: str, made: str) -> None:
    """Note what a request made; one without an id is not remembered."""
    if request_id:
        row = {"method": method, "request_id": request_id, "request_sha256": request_sha256}
        write.connection.execute(insert(idempotency).values(**row, response=made.encode(), create_time_us=write.now_us))
