"""The store's part for tokens and the audit log. As in `store.py`: one method per thing, one transaction each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.store import audit_rows, token_rows
from cluster.store.audit_rows import Call, StoredEntry, Wanted
from cluster.store.database import Database
from cluster.store.token_rows import StoredToken


class SecurityStore:
    """Who is let in, and what they did."""

    database: Database

    # Tokens

    def find_token(self, token_id: str) -> StoredToken | None:
        with self.database.read() as connection:
            return token_rows.find(connection, token_id)

    def list_tokens(self) -> list[StoredToken]:
        with self.database.read() as connection:
            return token_rows.list_all(connection)

    def has_admin_token(self) -> bool:
        with self.database.read() as connection:
            return token_rows.has_admin(connection, self.database.wall_us())

    def create_token(self, new: StoredToken) -> StoredToken:
        with self.database.write() as write:
            return token_rows.create(write, new, self.database.wall_us())

    def create_first_token(self, new: StoredToken) -> bool:
        """Whether it was stored: only where no admin token is in use."""
        with self.database.write() as write:
            if token_rows.has_admin(write.connection, self.database.wall_us()):
                return False
            token_rows.insert_row(write, new)
            return True

    def revoke_token(self, token_id: str) -> StoredToken:
        with self.database.write() as write:
            return token_rows.revoke(write, token_id)

    def note_token_use(self, token_id: str, time_us: int) -> None:
        with self.database.write() as write:
            token_rows.note_use(write, token_id, time_us)

    # Audit

    def append_audit(self, calls: Sequence[Call]) -> list[StoredEntry]:
        with self.database.write() as write:
            return audit_rows.append(write, calls)

    def audit_page(self, before: int | None, wanted: Wanted, limit: int) -> list[StoredEntry]:
        with self.database.read() as connection:
            return audit_rows.page(connection, before, wanted, limit)

    def audit_in_order(self) -> Iterator[StoredEntry]:
        """All entries, oldest first, as of one moment."""
        with self.database.read() as connection:
            yield from audit_rows.in_order(connection)
