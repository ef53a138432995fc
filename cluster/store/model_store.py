"""The part of the store that knows models and aliases: one transaction for each thing that is asked or made durable.

Synchronous, as the whole store. Files of models are not its affair.
"""

from __future__ import annotations

from cluster.store import alias_rows, model_rows, request_rows
from cluster.store.alias_rows import StoredMove
from cluster.store.database import Database
from cluster.store.model_rows import NewModel
from cluster.store.records import StoredModel

_CREATE_MODEL = "CreateModelVersion"


class ModelStore:
    """The registry."""

    database: Database

    def model_version(self, name: str, version: int) -> StoredModel:
        with self.database.read() as connection:
            return model_rows.get_version(connection, name, version)

    def model_alias(self, name: str, alias: str) -> StoredModel:
        with self.database.read() as connection:
            return alias_rows.get(connection, name, alias)

    def model_newest(self, name: str) -> StoredModel:
        with self.database.read() as connection:
            return model_rows.get_newest(connection, name)

    def list_models(self, name: str, after: tuple[str, int] | None, limit: int) -> list[StoredModel]:
        with self.database.read() as connection:
            return model_rows.list_versions(connection, name, after, limit)

    def model_paths(self) -> set[str]:
        with self.database.read() as connection:
            return model_rows.known_paths(connection)

    def create_model(self, new: NewModel, request_id: str, request_sha256: str) -> StoredModel:
        """Store a version, or answer with the one that the same request stored before."""
        with self.database.write() as write:
            known = request_rows.find(write.connection, _CREATE_MODEL, request_id, request_sha256)
            if known:
                return model_rows.get_version(write.connection, *_key(known))
            model = model_rows.create(write, new)
            request_rows.remember(write, [(_CREATE_MODEL, request_id, request_sha256, model.reference)])
            return model

    def find_model_request(self, request_id: str, request_sha256: str) -> StoredModel | None:
        """The version that this very request stored before; AlreadyExists when the id was used for another one."""
        with self.database.read() as connection:
            known = request_rows.find(connection, _CREATE_MODEL, request_id, request_sha256)
            return model_rows.get_version(connection, *_key(known)) if known else None

    def delete_model(self, name: str, version: int) -> StoredModel:
        """Forget a version that nothing needs; its files are the caller's part. PreconditionFailed / MODEL_IN_USE."""
        with self.database.write() as write:
            return model_rows.delete(write, name, version)

    def set_alias(self, name: str, alias: str, version: int, expected: int | None, actor: str = "") -> StoredModel:
        with self.database.write() as write:
            cause = alias_rows.SET_ALIAS
            return alias_rows.move(write, name, alias, version, cause=cause, actor=actor, expected=expected)

    def roll_back_alias(self, name: str, alias: str, expected: int | None, actor: str = "") -> StoredModel:
        with self.database.write() as write:
            return alias_rows.roll_back(write, name, alias, actor, expected)

    def delete_alias(self, name: str, alias: str, expected: int | None, actor: str = "") -> None:
        with self.database.write() as write:
            alias_rows.remove(write, name, alias, actor, expected)

    def alias_history(self, name: str, alias: str) -> list[StoredMove]:
        """Oldest first."""
        with self.database.read() as connection:
            return alias_rows.history(connection, name, alias)


def _key(reference: str) -> tuple[str, int]:
    name, _, version = reference.rpartition("@")
    return name, int(version)
