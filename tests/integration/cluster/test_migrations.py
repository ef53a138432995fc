from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, inspect, text

from cluster.errors import StartUpError
from cluster.lifecycle import State
from cluster.scheduler import Rules, queue_key
from cluster.store.database import migrate
from cluster.store.deployment_records import Engine as AnEngine
from cluster.store.deployment_records import Gate
from cluster.store.store import Store
from cluster.store.tables import metadata


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


def test_migrated_tables_are_those_of_the_code(engine: Engine) -> None:
    migrate(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_up_down_and_up_again(engine: Engine, database_url: str) -> None:
    migrate(engine)
    migrate(engine, "base")
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    migrate(engine)
    store = Store.open(database_url)
    assert store.head_version() == 0
    store.close()


# As the first release stored them, but for what has a default there.
OLD_JOB: dict[str, Any] = {
    **dict.fromkeys(("reason", "message", "published_model", "report_path"), ""),
    **dict.fromkeys(("infrastructure_failures", "user_failures"), 0),
    **{
        "start_time_us": None,
        "name": "bot",
        "kind": "FineTune",
        "labels": "{}",
        "conditions": "[]",
        "resolved_models": "{}",
    },
}
CREATED_US = 1_800_000_000_000_000
OLD_JOBS = [
    {"uid": "bot-waiting", "state": "QUEUED", "priority": 900, "spec": {"schedule": {"max_run_duration": "PT10H"}}},
    {"uid": "bot-running", "state": "RUNNING", "priority": 500, "spec": {}, "start_time_us": CREATED_US + 5_000_000},
    {"uid": "bot-done", "state": "SUCCEEDED", "priority": 500, "spec": {"schedule": None}},
]
OLD_ATTEMPT = {
    **{"job_uid": "bot-running", "number": 1, "ray_job_id": "bot-running-1", "lease_token_sha256": "ab"},
    **{"reason": "", "message": "", "released": False},
}


def fill_old_tables(engine: Engine) -> None:
    """Jobs, an attempt, an event and a model of revision 0001."""
    with engine.begin() as connection:
        for version, job in enumerate(OLD_JOBS, start=1):
            row = {
                **OLD_JOB,
                "start_time_us": None,
                **job,
                "spec": json.dumps(job["spec"]),
                "resource_version": version,
            }
            insert_row(connection, "jobs", row | {"create_time_us": CREATED_US, "update_time_us": CREATED_US})
        insert_row(connection, "attempts", OLD_ATTEMPT)
        event = {"resource_version": 2, "job_uid": "bot-running", "state": "RUNNING", "reason": "RUNNING"}
        snapshot = json.dumps({"state": "RUNNING", "attempts": [{"number": 1, "ray_job_id": "bot-running-1"}]})
        insert_row(connection, "events", event | {"message": "", "create_time_us": CREATED_US, "snapshot": snapshot})
        model = {"name": "bot", "version": 1, "path": "/m", "manifest_sha256": "ff", "job_uid": "bot-done"}
        insert_row(
            connection,
            "models",
            model | {"teachers": "[]", "num_parameters": 7, "metrics": "{}", "create_time_us": CREATED_US},
        )
        connection.execute(text("UPDATE log_position SET value = 3"))


def insert_row(connection: Connection, table: str, row: dict[str, Any]) -> None:
    names = ", ".join(row)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in row)})"), row)


def rows(engine: Engine, table: str) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2"))]


def test_jobs_of_the_release_before_go_up_and_down_again_as_they_were(engine: Engine, database_url: str) -> None:
    tables = ("jobs", "attempts", "events", "models", "log_position")
    migrate(engine, "0001")
    fill_old_tables(engine)
    before = {table: rows(engine, table) for table in tables}
    migrate(engine)
    store = Store.open(database_url)
    waiting, running, done = (store.get_job(job["uid"]) for job in OLD_JOBS)
    assert [entry.uid for entry in store.queue_heads(10)] == ["bot-waiting"]
    assert (waiting.max_run_duration_us, waiting.queue_since_us) == (36_000_000_000, CREATED_US)
    assert waiting.queue_key == queue_key(900, CREATED_US / 1e6, 0, Rules())[0]
    assert running.ran_until(CREATED_US + 65_000_000) == 60_000_000
    assert running.last_attempt is not None
    assert (done.project, done.depends_on, done.num_unmet, done.preemptions) == ("default", [], 0, 0)
    assert [event.job.state for event in store.job_events("bot-running")] == [State.RUNNING]
    store.close()
    migrate(engine, "0001")
    assert {table: rows(engine, table) for table in tables} == before
    migrate(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


OLD_GATE = {
    **{"teacher": "t@1", "mirror_share": 0.5, "error_budget": 0.05, "max_divergence_increase": 0.1},
    **{"max_agreement_loss": 0.05, "max_latency_ratio": 1.5, "max_error_rate": 0.01, "min_observations": 30},
    "max_duration_s": 60.0,
}
OLD_DEPLOYMENT = {
    **{"name": "desk", "model": "m@1", "resolved_model": "m@1", "path": "/m/1", "num_replicas": 1},
    **{"cpus_per_replica": 1.0, "gpus_per_replica": 0.0, "state": "READY", "message": "", "endpoint": ""},
    **{"create_time_us": CREATED_US, "update_time_us": CREATED_US, "project": "default", "creator": ""},
    **{"follow_alias": False, "followed": "m@1", "gate": json.dumps(OLD_GATE), "generation": 1},
}
OLD_CANARY = {
    **{"deployment": "desk", "number": 2, "model": "m@2", "path": "/m/2", "cpus_per_replica": 1.0},
    **{"gpus_per_replica": 0.0, "phase": "CANARY", "is_canary": True, "weight": 500, "mirror_share": 0.5},
    **{"was_live": False, "evidence": "{}", "message": "", "create_time_us": CREATED_US, "phase_time_us": CREATED_US},
    "trial": json.dumps({"gate": OLD_GATE, "teacher": "t@1", "teacher_path": "/t", "token": "secret"}),
}


def test_canaries_of_before_are_judged_on_and_go_down_again_as_they_were(engine: Engine, database_url: str) -> None:
    migrate(engine, "0003")
    with engine.begin() as connection:
        insert_row(connection, "deployments", OLD_DEPLOYMENT)
        insert_row(connection, "revisions", OLD_CANARY)
    before = rows(engine, "revisions")
    migrate(engine)
    store = Store.open(database_url)
    found = store.get_deployment("desk")
    assert found.canary is not None
    assert found.canary.trial is not None
    assert (
        found.gate
        == found.canary.trial.gate
        == Gate(teacher="t@1", mirror_share=0.5, max_error_rate=0.01, max_duration_s=60.0)
    )
    assert (found.engine, found.canary.engine, found.canary.trial.token) == (None, None, "secret")
    wanted = AnEngine("vllm", {"max_num_seqs": 8.0})
    assert store.decide_deployment(found, replace(found, engine=wanted), []).engine == wanted
    store.close()
    migrate(engine, "0003")
    assert rows(engine, "revisions") == before


def test_tables_whose_0003_knew_when_a_revision_got_no_more_requests_go_up_too(
    engine: Engine, database_url: str
) -> None:
    migrate(engine, "0003")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE revisions ADD COLUMN unrouted_time_us BIGINT DEFAULT 0 NOT NULL"))
        insert_row(connection, "deployments", OLD_DEPLOYMENT)
        insert_row(connection, "revisions", OLD_CANARY | {"unrouted_time_us": CREATED_US})
    store = Store.open(database_url)
    assert [each.unrouted_time_us for each in store.get_deployment("desk").revisions] == [CREATED_US]
    store.close()
    migrate(engine, "0003")
    assert "unrouted_time_us" not in {each["name"] for each in inspect(engine).get_columns("revisions")}


def test_to_where_it_is_nothing_moves(engine: Engine) -> None:
    for _ in range(2):
        migrate(engine, "0001")
        assert "standings" not in inspect(engine).get_table_names()


def test_tables_of_a_later_release_are_told_in_words(engine: Engine, database_url: str) -> None:
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartUpError) as caught:
        Store.open(database_url)
    assert caught.value.reason == "STORE_IS_NEWER"


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "sqlite:////proc/none/athanor.db"])
def test_store_that_cannot_be_opened_is_told_in_words(url: str) -> None:
    with pytest.raises(StartUpError) as caught:
        Store.open(url)
    assert "ATHANOR_DATABASE_URL" in caught.value.message or "sqlite or postgresql" in caught.value.message


def test_password_is_not_told() -> None:
    with pytest.raises(StartUpError) as caught:
        Store.open("postgresql://somebody:s3cret@127.0.0.1:1/athanor")
    assert "s3cret" not in caught.value.message
