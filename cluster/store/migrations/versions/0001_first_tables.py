"""first tables

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WORD = sa.String(64)
NAME = sa.String(40)
TIME = sa.BigInteger()


def _required(name: str, kind: sa.types.TypeEngine[Any], *, autoincrement: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False, autoincrement=autoincrement)


def upgrade() -> None:
    _create_jobs()
    _create_attempts()
    _create_events()
    _create_registry()
    _create_deployments()


def downgrade() -> None:
    for table in (
        "deployments",
        "alias_history",
        "aliases",
        "models",
        "idempotency",
        "log_position",
        "events",
        "attempts",
        "jobs",
    ):
        op.drop_table(table)


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        _required("seq", SEQUENCE, autoincrement=True),
        _required("uid", WORD),
        _required("name", NAME),
        _required("kind", NAME),
        _required("labels", sa.JSON()),
        _required("spec", sa.JSON()),
        _required("priority", sa.Integer()),
        _required("state", sa.String(20)),
        _required("reason", WORD),
        _required("message", sa.Text()),
        _required("conditions", sa.JSON()),
        sa.Column("progress", sa.JSON()),
        _required("resolved_models", sa.JSON()),
        _required("published_model", WORD),
        _required("report_path", sa.Text()),
        sa.Column("summary", sa.JSON()),
        _required("infrastructure_failures", sa.Integer()),
        _required("user_failures", sa.Integer()),
        sa.Column("cancel_time_us", TIME),
        _required("create_time_us", TIME),
        sa.Column("start_time_us", TIME),
        sa.Column("end_time_us", TIME),
        _required("update_time_us", TIME),
        _required("resource_version", sa.BigInteger()),
        sa.PrimaryKeyConstraint("seq", name="pk_jobs"),
        sa.UniqueConstraint("uid", name="uq_jobs_uid"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_name_seq", "jobs", ["name", "seq"])
    op.create_index("ix_jobs_resource_version", "jobs", ["resource_version"], unique=True)
    op.create_index("ix_jobs_state_priority_seq", "jobs", ["state", "priority", "seq"])


def _create_attempts() -> None:
    op.create_table(
        "attempts",
        _required("job_uid", WORD),
        _required("number", sa.Integer()),
        _required("ray_job_id", sa.String(80)),
        _required("lease_token_sha256", WORD),
        sa.Column("lease_expires_us", TIME),
        sa.Column("submit_time_us", TIME),
        sa.Column("start_time_us", TIME),
        sa.Column("end_time_us", TIME),
        _required("reason", WORD),
        _required("message", sa.Text()),
        sa.Column("terminal", sa.JSON()),
        _required("released", sa.Boolean()),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], name="fk_attempts_job_uid"),
        sa.PrimaryKeyConstraint("job_uid", "number", name="pk_attempts"),
        sa.UniqueConstraint("ray_job_id", name="uq_attempts_ray_job_id"),
    )
    op.create_index("ix_attempts_released", "attempts", ["released"])


def _create_events() -> None:
    op.create_table(
        "events",
        _required("resource_version", sa.BigInteger()),
        _required("job_uid", WORD),
        _required("state", sa.String(20)),
        _required("reason", WORD),
        _required("message", sa.Text()),
        _required("create_time_us", TIME),
        _required("snapshot", sa.JSON()),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], name="fk_events_job_uid"),
        sa.PrimaryKeyConstraint("resource_version", name="pk_events"),
    )
    op.create_index("ix_events_job_uid_resource_version", "events", ["job_uid", "resource_version"])
    position = op.create_table(
        "log_position",
        _required("id", sa.Integer()),
        _required("value", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_log_position"),
    )
    op.bulk_insert(position, [{"id": 1, "value": 0}])
    op.create_table(
        "idempotency",
        _required("method", WORD),
        _required("request_id", WORD),
        _required("request_sha256", WORD),
        _required("response", sa.LargeBinary()),
        _required("create_time_us", TIME),
        sa.PrimaryKeyConstraint("method", "request_id", name="pk_idempotency"),
    )


def _create_registry() -> None:
    op.create_table(
        "models",
        _required("name", NAME),
        _required("version", sa.Integer()),
        _required("path", sa.Text()),
        _required("manifest_sha256", WORD),
        sa.Column("job_uid", WORD),
        _required("teachers", sa.JSON()),
        _required("num_parameters", sa.BigInteger()),
        _required("metrics", sa.JSON()),
        _required("create_time_us", TIME),
        sa.ForeignKeyConstraint(["job_uid"], ["jobs.uid"], name="fk_models_job_uid"),
        sa.PrimaryKeyConstraint("name", "version", name="pk_models"),
        sa.UniqueConstraint("job_uid", name="uq_models_job_uid"),
    )
    op.create_table(
        "aliases",
        _required("name", NAME),
        _required("alias", NAME),
        _required("version", sa.Integer()),
        sa.ForeignKeyConstraint(["name", "version"], ["models.name", "models.version"], name="fk_aliases_name_version"),
        sa.PrimaryKeyConstraint("name", "alias", name="pk_aliases"),
    )
    op.create_index("ix_aliases_name_version", "aliases", ["name", "version"])
    op.create_table(
        "alias_history",
        _required("id", SEQUENCE, autoincrement=True),
        _required("name", NAME),
        _required("alias", NAME),
        _required("version", sa.Integer()),
        _required("previous_version", sa.Integer()),
        _required("cause", WORD),
        _required("create_time_us", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_alias_history"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alias_history_name_alias_id", "alias_history", ["name", "alias", "id"])


def _create_deployments() -> None:
    op.create_table(
        "deployments",
        _required("name", NAME),
        _required("model", sa.String(100)),
        _required("resolved_model", WORD),
        _required("path", sa.Text()),
        _required("num_replicas", sa.Integer()),
        _required("cpus_per_replica", sa.Float()),
        _required("gpus_per_replica", sa.Float()),
        _required("state", sa.String(20)),
        _required("message", sa.Text()),
        _required("endpoint", sa.Text()),
        _required("create_time_us", TIME),
        _required("update_time_us", TIME),
        sa.PrimaryKeyConstraint("name", name="pk_deployments"),
    )
