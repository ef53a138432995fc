"""by what the models of a deployment are run, and what it may use

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TABLES = ("deployments", "revisions")


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(table, sa.Column("engine", sa.JSON()))


def downgrade() -> None:
    for table in _TABLES:
        with op.batch_alter_table(table) as altered:
            altered.drop_column("engine")
