"""by what models are run, which deployments did not follow their alias, since when a revision gets no more requests

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

def upgrade() -> None:
    for table in ("deployments", "revisions"):
        op.add_column(table, sa.Column("engine", sa.JSON()))
    is_untried = sa.Column("is_untried", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("deployments", is_untried)
    # Between two releases 0003 made this one, so that there are tables which have it.
    if "unrouted_time_us" not in {each["name"] for each in sa.inspect(op.get_bind()).get_columns("revisions")}:
        unrouted = sa.Column("unrouted_time_us", sa.BigInteger(), nullable=False, server_default="0")
        op.add_column("revisions", unrouted)


def downgrade() -> None:
    for table, names in (("deployments", ("is_untried", "engine")), ("revisions", ("unrouted_time_us", "engine"))):
        with op.batch_alter_table(table) as altered:
            for name in names:
                altered.drop_column(name)
