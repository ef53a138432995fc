"""The tables. Times are microseconds since 1970 UTC, so that both databases keep them alike.

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
_Sequence = BigInteger().with_variant(Integer(), "sqlite")

jobs = Table(
    "jobs",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
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
    Column("create_time_us", BigInteger, nullable=False),
    Column("start_time_us", BigInteger),
    Column("end_time_us", BigInteger),
    Column("update_time_us", BigInteger, nullable=False),
    Column("resource_version", BigInteger, nullable=False),
    Index(None, "state", "priority", "seq"),
    Index(None, "name", "seq"),
    Index(None, "resource_version", unique=True),
    sqlite_autoincrement=True,
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
    Column("create_time_us", BigInteger, nullable=False),
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
    Column("id", _Sequence, primary_key=True, autoincrement=True),
    Column("name", String(40), nullable=False),
    Column("alias", String(40), nullable=False),
    Column("version", Integer, nullable=False),
    # 0: there was none.
    Column("previous_version", Integer, nullable=False),
    Column("cause", String(64), nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Index(None, "name", "alias", "id"),
    sqlite_autoincrement=True,
)

deployments = Table(
    "deployments",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("model", String(100), nullable=False),
    Column("resolved_model", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("num_replicas", Integer, nullable=False),
    Column("cpus_per_replica", Float, nullable=False),
    Column("gpus_per_replica", Float, nullable=False),
    Column("state", String(20), nullable=False),
    Column("message", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("update_time_us", BigInteger, nullable=False),
)
