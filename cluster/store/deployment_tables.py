"""The tables of deployments, their revisions and what was decided about them, beside those of tables.py."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Index, Integer, String, Table, Text

from cluster.store.tables import RowNumber, metadata

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
    Column("project", String(40), nullable=False),
    Column("creator", String(40), nullable=False),
    Column("follow_alias", Boolean, nullable=False),
    Column("followed", String(64), nullable=False),
    Column("is_untried", Boolean, nullable=False),
    *(Column(name, JSON(none_as_null=True)) for name in ("autoscaling", "gate", "engine")),
    Column("generation", BigInteger, nullable=False),
    Column("observed_generation", BigInteger, nullable=False),
)

revisions = Table(
    "revisions",
    metadata,
    Column("deployment", String(40), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("model", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("cpus_per_replica", Float, nullable=False),
    Column("gpus_per_replica", Float, nullable=False),
    Column("phase", String(20), nullable=False),
    Column("is_canary", Boolean, nullable=False),
    Column("weight", Integer, nullable=False),
    Column("mirror_share", Float, nullable=False),
    Column("was_live", Boolean, nullable=False),
    Column("trial", JSON(none_as_null=True)),  # gate, teacher and token of its judge
    Column("engine", JSON(none_as_null=True)),
    # State of the gate's tests; written by what is observed, never by a decision.
    Column("evidence", JSON, nullable=False),
    Column("message", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("phase_time_us", BigInteger, nullable=False),
    # When the gateway was first seen to send it no more requests; 0: not yet.
    Column("unrouted_time_us", BigInteger, nullable=False),
    Index(None, "model"),
)

deployment_events = Table(
    "deployment_events",
    metadata,
    Column("number", RowNumber, primary_key=True, autoincrement=True),
    Column("deployment", String(40), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("reason", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Column("actor", String(40), nullable=False),
    Column("figures", JSON, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Index(None, "deployment", "number"),
    sqlite_autoincrement=True,
)
