"""The tables; those of deployments are in deployment_tables.py.

Times are microseconds since 1970 UTC, so that both databases keep them alike.

Every write transaction is alone (see database.py), and takes its resource versions from `log_position`: they are dense,
and become visible in their order.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only where the column is exactly INTEGER.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")

jobs = Table(
    "jobs",
    metadata,
    Column("seq", RowNumber, primary_key=True, autoincrement=True),
    Column("uid", String(64), nullable=False, unique=True),
    Column("name", String(40), nullable=False),
    Column("kind", String(40), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Column("conditions", JSON, nullable=False),
    Column("progress", JSON(none_as_null=True)),
    Column("resolved_models", JSON, nullable=False),
    Column("published_model", String(64), nullable=False),
    Column("report_path", Text, nullable=False),
    Column("summary", JSON(none_as_null=True)),
    Column("infrastructure_failures", Integer, nullable=False),
    Column("user_failures", Integer, nullable=False),
    Column("cancel_time_us", BigInteger),
    # How long the driver may take to end; null: the server's default.
    Column("cancel_grace_us", BigInteger),
    Column("project", String(40), nullable=False),
    Column("creator", String(40), nullable=False),
    Column("retry_of", String(64), nullable=False),
    # Null: no limit.
    Column("max_run_duration_us", BigInteger),
    # When it last began to wait, and its place by that and its priority (see scheduler.queue_key).
    Column("queue_since_us", BigInteger),
    Column("queue_key", Float),
    Column("hold_until_us", BigInteger),
    # Uids of jobs that must have SUCCEEDED.
    Column("depends_on", JSON, nullable=False),
    # How many of them have not yet, see dependency_rows.py.
    Column("num_unmet", Integer, nullable=False),
    # Not before this is a lost attempt followed by the next.
    Column("retry_at_us", BigInteger),
    Column("preemptions", Integer, nullable=False),
    # How long it was RUNNING before it was so last, and since when it is.
    Column("ran_us", BigInteger, nullable=False),
    Column("running_since_us", BigInteger),
    Column("create_time_us", BigInteger, nullable=False),
    Column("start_time_us", BigInteger),
    Column("end_time_us", BigInteger),
    Column("update_time_us", BigInteger, nullable=False),
    Column("resource_version", BigInteger, nullable=False),
    Index("ix_jobs_queue", "state", "project", "num_unmet", "queue_key", "seq", "hold_until_us"),
    Index(None, "state", "num_unmet"),
    Index(None, "state", "seq"),
    Index(None, "state", "hold_until_us"),
    Index(None, "name", "seq"),
    Index(None, "project", "seq"),
    Index(None, "resource_version", unique=True),
    sqlite_autoincrement=True,
)

# A row for each job that another one still waits for.
dependencies = Table(
    "dependencies",
    metadata,
    Column("job_uid", String(64), primary_key=True),
    Column("on_uid", String(64), primary_key=True),
    Index(None, "on_uid"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_uid", String(64), ForeignKey("jobs.uid"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("ray_job_id", String(80), nullable=False, unique=True),
    Column("lease_token_sha256", String(64), nullable=False),
    Column("lease_expires_us", BigInteger),
    Column("submit_time_us", BigInteger),
    Column("start_time_us", BigInteger),
    Column("end_time_us", BigInteger),
    Column("reason", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Column("terminal", JSON(none_as_null=True)),
    Column("released", Boolean, nullable=False),
    Index(None, "released"),
)

events = Table(
    "events",
    metadata,
    Column("resource_version", BigInteger, primary_key=True, autoincrement=False),
    Column("job_uid", String(64), ForeignKey("jobs.uid"), nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    # What could change of the job, as it was after the event.
    Column("snapshot", JSON, nullable=False),
    Index(None, "job_uid", "resource_version"),
)

log_position = Table(
    "log_position",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
    # Changes up to here are not kept any more: nobody can resume a watch before it.
    Column("compacted", BigInteger, nullable=False),
)

# Jobs that are gone, for those who watch.
deletions = Table(
    "deletions",
    metadata,
    Column("resource_version", BigInteger, primary_key=True, autoincrement=False),
    Column("job_uid", String(64), nullable=False),
    Column("project", String(40), nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
)

# What projects may hold at once; null: no limit. One without a row has none.
projects = Table(
    "projects",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("cpus", Float),
    Column("gpus", Float),
    Column("running_jobs", Integer),
    Column("weight", Float, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(40), nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("role", String(20), nullable=False),
    # Names; empty: all.
    Column("projects", JSON, nullable=False),
    Column("created_by", String(40), nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("expire_time_us", BigInteger),
    Column("revoke_time_us", BigInteger),
    Column("last_use_time_us", BigInteger),
)

audit = Table(
    "audit",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("actor", String(40), nullable=False),
    Column("peer", Text, nullable=False),
    Column("method", String(100), nullable=False),
    Column("resource", Text, nullable=False),
    Column("code", String(30), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index(None, "actor", "number"),
)

# Control planes that live on this store, and who of them does what only one may do.
replicas = Table(
    "replicas",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("address", Text, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("expires_us", BigInteger, nullable=False),
)

# The scheduler's last decision: one row.
standings = Table(
    "standings",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("decision_time_us", BigInteger, nullable=False),
    # [uid, position, reason, message], in order.
    Column("waiting", JSON, nullable=False),
)

# Who this store belongs to, as Ray and the storage are told: one row.
installation = Table(
    "installation",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("uid", String(40), nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("method", String(64), primary_key=True),
    Column("request_id", String(64), primary_key=True),
    Column("request_sha256", String(64), nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("path", Text, nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("job_uid", String(64), ForeignKey("jobs.uid"), unique=True),
    Column("teachers", JSON, nullable=False),
    Column("num_parameters", BigInteger, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("description", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    # A deleted version keeps its row: its number is never given again, and the lineage of others stays readable.
    Column("delete_time_us", BigInteger),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("alias", String(40), primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["models.name", "models.version"]),
    Index(None, "name", "version"),
)

alias_history = Table(
    "alias_history",
    metadata,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("name", String(40), nullable=False),
    Column("alias", String(40), nullable=False),
    Column("version", Integer, nullable=False),
    # 0: there was none.
    Column("previous_version", Integer, nullable=False),
    Column("cause", String(64), nullable=False),
    # Name of the token; empty for a job.
    Column("actor", String(40), nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Index(None, "name", "alias", "id"),
    sqlite_autoincrement=True,
)
