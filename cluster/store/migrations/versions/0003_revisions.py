"""revisions of deployments, and the history of decisions about them

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NAME = sa.String(40)
WORD = sa.String(64)
TIME = sa.BigInteger()


def _deployment_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("project", NAME, nullable=False, server_default="default"),
        sa.Column("creator", NAME, nullable=False, server_default=""),
        sa.Column("follow_alias", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("followed", WORD, nullable=False, server_default=""),
        sa.Column("autoscaling", sa.JSON()),
        sa.Column("gate", sa.JSON()),
        sa.Column("generation", TIME, nullable=False, server_default="1"),
    )


def upgrade() -> None:
    for column in _deployment_columns():
        op.add_column("deployments", column)
    op.create_table(
        "revisions",
        sa.Column("deployment", NAME, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("model", WORD, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("cpus_per_replica", sa.Float(), nullable=False),
        sa.Column("gpus_per_replica", sa.Float(), nullable=False),
        sa.Column("phase", sa.String(20), nullable=False),
        sa.Column("is_canary", sa.Boolean(), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("mirror_share", sa.Float(), nullable=False),
        sa.Column("was_live", sa.Boolean(), nullable=False),
        sa.Column("trial", sa.JSON()),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("create_time_us", TIME, nullable=False),
        sa.Column("phase_time_us", TIME, nullable=False),
        sa.PrimaryKeyConstraint("deployment", "number", name="pk_revisions"),
    )
    op.create_index("ix_revisions_model", "revisions", ["model"])
    op.create_table(
        "deployment_events",
        sa.Column("number", SEQUENCE, nullable=False, autoincrement=True),
        sa.Column("deployment", NAME, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("reason", WORD, nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("actor", NAME, nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("create_time_us", TIME, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_deployment_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_deployment_events_deployment_number", "deployment_events", ["deployment", "number"])
    _first_revisions()


def downgrade() -> None:
    op.drop_table("deployment_events")
    op.drop_table("revisions")
    with op.batch_alter_table("deployments") as deployments:
        for column in reversed(_deployment_columns()):
            deployments.drop_column(column.name)


def _first_revisions() -> None:
    """What was deployed before comes up again as the first revision of its deployment."""
    op.execute(
        "INSERT INTO revisions (deployment, number, model, path, cpus_per_replica, gpus_per_replica, phase, is_canary,"
        " weight, mirror_share, was_live, trial, evidence, message, create_time_us, phase_time_us)"
        " SELECT name, 1, resolved_model, path, cpus_per_replica, gpus_per_replica, 'STARTING', false,"
        " 0, 0.0, false, NULL, '{}', '', create_time_us, create_time_us FROM deployments"
    )
