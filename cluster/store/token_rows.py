"""Tokens in SQL, without their secrets. Every function works inside a transaction that its caller holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, insert, or_, select, update

from cluster.errors import AlreadyExists, NotFound
from cluster.store.database import Write
from cluster.store.tables import tokens

_ADMIN = "ADMIN"


@dataclass(frozen=True)
class StoredToken:
    """A token; `role` is the name of a `Role`."""

    id: str
    name: str
    secret_sha256: str = field(repr=False)
    role: str
    projects: tuple[str, ...] = ()
    created_by: str = ""
    create_time_us: int = 0
    expire_time_us: int | None = None
    revoke_time_us: int | None = None
    last_use_time_us: int | None = None


def find(connection: Connection, token_id: str) -> StoredToken | None:
    row = connection.execute(select(tokens).where(tokens.c.id == token_id)).one_or_none()
    return _token(row) if row else None


def list_all(connection: Connection) -> list[StoredToken]:
    """Newest first."""
    rows = connection.execute(select(tokens).order_by(tokens.c.create_time_us.desc(), tokens.c.id))
    return [_token(row) for row in rows]


def has_admin(connection: Connection, now_us: int) -> bool:
    """Whether one may be used now."""
    usable = select(tokens.c.id).where(tokens.c.role == _ADMIN, *_usable(now_us)).limit(1)
    return connection.execute(usable).first() is not None


def create(write: Write, new: StoredToken, wall_us: int) -> StoredToken:
    """AlreadyExists / TOKEN_NAME_TAKEN: of two tokens of one name nobody could tell who did what."""
    same = select(tokens.c.id).where(tokens.c.name == new.name, *_usable(wall_us)).limit(1)
    if (other := write.connection.execute(same).scalar()) is not None:
        mend = f"take another name, or revoke that one (`athanor token revoke {other}`)"
        raise AlreadyExists("TOKEN_NAME_TAKEN", f"the token {other} in use has the name {new.name!r}; {mend}")
    return insert_row(write, new)


def insert_row(write: Write, new: StoredToken) -> StoredToken:
    values = {**vars(new), "projects": list(new.projects), "create_time_us": write.now_us}
    write.connection.execute(insert(tokens).values(**values))
    stored = find(write.connection, new.id)
    assert stored is not None
    return stored


def revoke(write: Write, token_id: str) -> StoredToken:
    """NotFound / TOKEN_NOT_FOUND. Revoked ones stay as they are."""
    once = update(tokens).where(tokens.c.id == token_id, tokens.c.revoke_time_us.is_(None))
    write.connection.execute(once.values(revoke_time_us=write.now_us))
    token = find(write.connection, token_id)
    if token is None:
        raise NotFound("TOKEN_NOT_FOUND", f"there is no token {token_id!r}; `athanor token list` shows those there are")
    return token


def note_use(write: Write, token_id: str, time_us: int) -> None:
    write.connection.execute(update(tokens).where(tokens.c.id == token_id).values(last_use_time_us=time_us))


def _usable(now_us: int) -> tuple[Any, Any]:
    never = tokens.c.expire_time_us.is_(None)
    return tokens.c.revoke_time_us.is_(None), or_(never, tokens.c.expire_time_us > now_us)


def _token(row: Row[Any]) -> StoredToken:
    values = row._asdict()
    return StoredToken(**{**values, "projects": tuple(values["projects"])})
