"""by what models are run, and what was seen of deployments: what Serve goes by, aliases not followed

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

NUMBER = sa.BigInteger()


def upgrade() -> None:
    for table in ("deployments", "revisions"):
        op.add_column(table, sa.Column("engine", sa.JSON()))
    op.add_column("deployments", sa.Column("is_untried", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("deployments", sa.Column("observed_generation", NUMBER, nullable=False, server_default="0"))
    # Between two releases 0003 made this one, so that there are tables which have it.
    if "unrouted_time_us" not in {each["name"] for each in sa.inspect(op.get_bind()).get_columns("revisions")}:
        op.add_column("revisions", sa.Column("unrouted_time_us", NUMBER, nullable=False, server_default="0"))


def downgrade() -> None:
    for table, names in (
        ("deployments", ("observed_generation", "is_untried", "engine")),
        ("revisions", ("unrouted_time_us", "engine")),
    ):
        with op.batch_alter_table(table) as altered:
            for name in names:
                altered.drop_column(name)
