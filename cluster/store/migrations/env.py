"""Runs the revisions on the connection that `cluster.store.database.migrate` hands over."""

from __future__ import annotations

from alembic import context

from cluster.store.deployment_tables import deployments

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=deployments.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
