"""projects, quotas, queue keys, tokens, audit log, several control planes

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from alembic import op
from pydantic import TypeAdapter

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

WORD = sa.String(64)
NAME = sa.String(40)
TIME = sa.BigInteger()
_DEFAULT_PRIORITY = 500
_AGEING_PER_HOUR = 50.0
"""Of the scheduler, when this revision was written: waiting jobs keep their order."""

_TABLES = (
    *("deletions", "projects", "tokens", "audit", "replicas", "leases", "standings", "installation"),
    "dependencies",
)


def _job_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("cancel_grace_us", TIME),
        sa.Column("project", NAME, nullable=False, server_default="default"),
        sa.Column("creator", NAME, nullable=False, server_default=""),
        sa.Column("retry_of", WORD, nullable=False, server_default=""),
        sa.Column("max_run_duration_us", TIME),
        sa.Column("queue_since_us", TIME),
        sa.Column("queue_key", sa.Float()),
        sa.Column("hold_until_us", TIME),
        sa.Column("depends_on", sa.JSON(), nullable=False, server_default="[]"),
        sa.Column("num_unmet", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("retry_at_us", TIME),
        sa.Column("preemptions", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("ran_us", TIME, nullable=False, server_default="0"),
        sa.Column("running_since_us", TIME),
    )


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        for column in _job_columns():
            jobs.add_column(column)
        jobs.create_index("ix_jobs_queue", ["state", "project", "num_unmet", "queue_key", "seq", "hold_until_us"])
        jobs.create_index("ix_jobs_state_num_unmet", ["state", "num_unmet"])
        jobs.create_index("ix_jobs_state_hold_until_us", ["state", "hold_until_us"])
        jobs.create_index("ix_jobs_project_seq", ["project", "seq"])
        jobs.create_index("ix_jobs_state_seq", ["state", "seq"])
        jobs.drop_index("ix_jobs_state_priority_seq")
    for table, column in (
        ("log_position", sa.Column("compacted", TIME, nullable=False, server_default="0")),
        ("alias_history", sa.Column("actor", NAME, nullable=False, server_default="")),
        ("models", sa.Column("description", sa.Text(), nullable=False, server_default="")),
        ("models", sa.Column("delete_time_us", TIME)),
    ):
        op.add_column(table, column)
    _create_tables()
    _fill_jobs()
    op.execute("UPDATE idempotency SET method = 'CreateJob/default' WHERE method = 'CreateJob'")


def downgrade() -> None:
    op.execute("DELETE FROM idempotency WHERE method <> 'CreateJob/default'")
    op.execute("UPDATE idempotency SET method = 'CreateJob'")
    for table in reversed(_TABLES):
        op.drop_table(table)
    op.execute("DELETE FROM models WHERE delete_time_us IS NOT NULL")
    with op.batch_alter_table("models") as altered:
        altered.drop_column("delete_time_us")
        altered.drop_column("description")
    for table, column in (("alias_history", "actor"), ("log_position", "compacted")):
        with op.batch_alter_table(table) as altered:
            altered.drop_column(column)
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_index("ix_jobs_project_seq")
        for index in ("ix_jobs_state_seq", "ix_jobs_state_hold_until_us", "ix_jobs_state_num_unmet", "ix_jobs_queue"):
            jobs.drop_index(index)
        jobs.create_index("ix_jobs_state_priority_seq", ["state", "priority", "seq"])
        for added in _job_columns():
            jobs.drop_column(added.name)


def _create_tables() -> None:
    op.create_table(
        "deletions",
        sa.Column("resource_version", TIME, nullable=False, autoincrement=False),
        sa.Column("job_uid", WORD, nullable=False),
        sa.Column("project", NAME, nullable=False),
        sa.Column("create_time_us", TIME, nullable=False),
        sa.PrimaryKeyConstraint("resource_version", name="pk_deletions"),
    )
    op.create_table(
        "projects",
        sa.Column("name", NAME, nullable=False),
        sa.Column("cpus", sa.Float()),
        sa.Column("gpus", sa.Float()),
        sa.Column("running_jobs", sa.Integer()),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_projects"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("secret_sha256", WORD, nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("projects", sa.JSON(), nullable=False),
        sa.Column("created_by", NAME, nullable=False),
        sa.Column("create_time_us", TIME, nullable=False),
        sa.Column("expire_time_us", TIME),
        sa.Column("revoke_time_us", TIME),
        sa.Column("last_use_time_us", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
    )
    op.create_table(
        "audit",
        sa.Column("number", TIME, nullable=False, autoincrement=False),
        sa.Column("create_time_us", TIME, nullable=False),
        sa.Column("actor", NAME, nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("method", sa.String(100), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("code", sa.String(30), nullable=False),
        sa.Column("reason", WORD, nullable=False),
        sa.Column("request_id", WORD, nullable=False),
        sa.Column("hash", WORD, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
    )
    op.create_index("ix_audit_actor_number", "audit", ["actor", "number"])
    _create_tables_of_planes()


def _create_tables_of_planes() -> None:
    op.create_table(
        "replicas",
        sa.Column("id", WORD, nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("expires_us", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_replicas"),
    )
    op.create_table(
        "leases",
        sa.Column("name", NAME, nullable=False),
        sa.Column("holder", WORD, nullable=False),
        sa.Column("expires_us", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.create_table(
        "standings",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("decision_time_us", TIME, nullable=False),
        sa.Column("waiting", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_standings"),
    )
    op.create_table(
        "installation",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("uid", NAME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_installation"),
    )

    op.create_table(
        "dependencies",
        sa.Column("job_uid", WORD, nullable=False),
        sa.Column("on_uid", WORD, nullable=False),
        sa.PrimaryKeyConstraint("job_uid", "on_uid", name="pk_dependencies"),
    )
    op.create_index("ix_dependencies_on_uid", "dependencies", ["on_uid"])


def _fill_jobs() -> None:
    """What a job's spec said of its longest run and its place in the queue, now in columns of their own.

    A running job's time counts from its first start, as it did before.
    """
    jobs = sa.table(
        "jobs",
        *(sa.column(name) for name in ("uid", "priority", "create_time_us", "queue_since_us", "queue_key")),
        *(sa.column(name) for name in ("state", "start_time_us", "running_since_us", "max_run_duration_us")),
        sa.column("spec", sa.JSON()),
    )
    connection = op.get_bind()
    for row in connection.execute(sa.select(jobs)).all():
        spec = json.loads(row.spec) if isinstance(row.spec, str) else row.spec
        values = {
            "max_run_duration_us": _microseconds((spec.get("schedule") or {}).get("max_run_duration")),
            "running_since_us": row.start_time_us if row.state == "RUNNING" else None,
            "queue_since_us": row.create_time_us,
            "queue_key": _AGEING_PER_HOUR * row.create_time_us / 3.6e9 - row.priority,
        }
        connection.execute(sa.update(jobs).where(jobs.c.uid == row.uid).values(**values))


def _microseconds(duration: object) -> int | None:
    """Of an ISO 8601 duration as pydantic wrote it: PT10H, P1DT2H30M5.5S."""
    return None if duration is None else int(TypeAdapter(timedelta).validate_python(duration).total_seconds() * 1e6)
