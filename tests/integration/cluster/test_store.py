"""The same promises on both databases."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import AlreadyExists, Conflict, NotFound, OutOfRange, PreconditionFailed, StoreUnavailable
from cluster.filters import NEWEST_FIRST
from cluster.ids import hash_token, new_job_uid
from cluster.lifecycle import State
from cluster.scheduler import Quota, Rules
from cluster.standings import WORDS, Standing
from cluster.store import alias_rows
from cluster.store.deployment_records import Autoscaling, Decision, Gate, Phase, Revision, Trial
from cluster.store.deployment_records import Engine as ModelEngine
from cluster.store.job_lists import cursor_of
from cluster.store.records import (
    Change,
    DeploymentState,
    JobQuery,
    Lease,
    NewJob,
    Publication,
    StoredAttempt,
    StoredDeployment,
    StoredJob,
)
from cluster.store.store import Store

ADMIT = Change("ADMITTED", "its turn has come", State.ADMITTED)


def new_job(name: str = "bot", priority: int = 500) -> NewJob:
    return NewJob(new_job_uid(name), name, "FineTune", {"team": "care"}, {"a": [1, None, "ü"]}, priority, {})


def with_attempt(store: Store, token: str = "token") -> tuple[StoredJob, Lease]:
    job = store.transition(store.create_job(new_job()), ADMIT)
    attempt = StoredAttempt(job.uid, 1, f"{job.uid}-1", lease_token_sha256=hash_token(token))
    job = store.transition(job, Change("ATTEMPT_CREATED", "", opens_attempt=attempt))
    return job, Lease(job.uid, 1, hash_token(token))


def publication(number: int, alias: str | None = "champion") -> Publication:
    return Publication("bot", alias, f"/m/{number}", "ff", (), 7, {"exact_match": 0.5})


def publish(store: Store, number: int, alias: str | None = "champion") -> StoredJob:
    job, _ = with_attempt(store)
    job = store.transition(job, Change("SUBMITTED", "", State.STARTING))
    return store.transition(job, Change("DONE", "", State.SUCCEEDED, publication=publication(number, alias)))


def test_job_comes_back_as_it_was_stored(store: Store, open_store: Callable[[], Store]) -> None:
    job = store.create_job(new_job())
    assert open_store().get_job(job.uid) == job
    assert (job.state, job.spec, job.labels) == (State.QUEUED, {"a": [1, None, "ü"]}, {"team": "care"})
    with pytest.raises(NotFound) as caught:
        store.get_job("bot-aaaaaaaa")
    assert caught.value.reason == "JOB_NOT_FOUND"


def test_same_request_gives_the_same_job(store: Store) -> None:
    job = store.create_job(new_job(), "r-1", "hash")
    assert store.create_job(new_job(), "r-1", "hash") == job
    assert store.find_request("r-1", "hash") == job
    assert store.find_request("r-2", "hash") is None
    with pytest.raises(AlreadyExists) as caught:
        store.create_job(new_job(), "r-1", "other hash")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert len(store.list_jobs(JobQuery(10))) == 1


def test_same_request_from_everywhere_at_once_gives_one_job(open_store: Callable[[], Store]) -> None:
    stores = [open_store(), open_store()]
    barrier = threading.Barrier(8)

    def ask(number: int) -> str:
        barrier.wait()
        return stores[number % 2].create_job(new_job(), "r-1", "hash").uid

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    assert len(stores[0].list_jobs(JobQuery(10))) == 1


def test_resource_versions_are_dense_whoever_writes(open_store: Callable[[], Store]) -> None:
    stores = [open_store(), open_store()]
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda n: stores[n % 2].create_job(new_job()), range(40)))
    assert sorted(job.resource_version for job in jobs) == list(range(1, 41))
    assert stores[0].head_version() == 40


def test_step_from_what_is_no_longer_true_changes_nothing(store: Store) -> None:
    job = store.create_job(new_job())
    store.transition(job, ADMIT)
    head = store.head_version()
    with pytest.raises(Conflict) as caught:
        store.transition(job, Change("CANCEL_ASKED", "", State.CANCELLING))
    assert caught.value.reason == "JOB_CHANGED"
    assert store.get_job(job.uid).state is State.ADMITTED
    assert store.head_version() == head, "what was rolled back leaves no gap"


def test_of_many_who_step_at_once_one_does(open_store: Callable[[], Store]) -> None:
    stores = [open_store(), open_store()]
    job = stores[0].create_job(new_job())
    barrier = threading.Barrier(6)

    def step(number: int) -> bool:
        barrier.wait()
        try:
            stores[number % 2].transition(job, ADMIT)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(step, range(6))) == 1
    assert [event.reason for event in stores[0].job_events(job.uid)] == ["CREATED", "ADMITTED"]


def test_step_that_fails_half_way_leaves_nothing(store: Store) -> None:
    job, _ = with_attempt(store)
    again = Change("ATTEMPT_CREATED", "", opens_attempt=StoredAttempt(job.uid, 1, "other"))
    head = store.head_version()
    with pytest.raises(Exception, match=r"(?i)unique"):
        store.transition(job, again)
    assert (store.get_job(job.uid), store.head_version()) == (job, head)


def test_edge_that_the_lifecycle_does_not_have(store: Store) -> None:
    job = store.create_job(new_job())
    with pytest.raises(AssertionError, match="no edge QUEUED -> RUNNING"):
        store.transition(job, Change("X", "", State.RUNNING))


def test_worker_calls_need_the_lease(store: Store) -> None:
    job, lease = with_attempt(store)
    job = store.transition(job, Change("SUBMITTED", "", State.STARTING), lease)
    for stranger in (
        Lease(job.uid, 1, hash_token("other")),
        Lease(job.uid, 2, lease.token_sha256),
        Lease(job.uid, 1, ""),
    ):
        for call in (
            lambda who: store.renew_lease(who, 15),
            lambda who: store.record_progress(who, 15, {"step": 1}, []),
            lambda who: store.transition(job, Change("RUNNING", "", State.RUNNING), who),
        ):
            with pytest.raises(PreconditionFailed) as caught:
                call(stranger)
            assert caught.value.reason == "LEASE_LOST"
    assert store.get_job(job.uid) == job


def test_lease_ends_with_its_attempt(store: Store) -> None:
    job, lease = with_attempt(store)
    store.renew_lease(lease, 15)
    assert store.get_job(job.uid).last_attempt.lease_expires_us > store.now_us()
    store.transition(job, Change("LOST", "", attempt={"end_time_us": 1}))
    with pytest.raises(PreconditionFailed):
        store.renew_lease(lease, 15)


def test_attempt_without_a_token_is_nobodys(store: Store) -> None:
    job, _ = with_attempt(store)
    store.mark_attempt(job, lease_token_sha256="")
    with pytest.raises(PreconditionFailed):
        store.renew_lease(Lease(job.uid, 1, ""), 15)


def test_pages_survive_inserts(store: Store) -> None:
    old = [store.create_job(new_job()).uid for _ in range(5)]
    first = store.list_jobs(JobQuery(2))
    store.create_job(new_job())
    second = store.list_jobs(JobQuery(10, after=cursor_of(first[-1], NEWEST_FIRST)))
    assert [job.uid for job in first + second] == old[::-1]


def test_filters(store: Store) -> None:
    job = store.transition(store.create_job(new_job("one")), ADMIT)
    other = store.create_job(new_job("two"))
    assert [each.uid for each in store.list_jobs(JobQuery(10, states=(State.ADMITTED,)))] == [job.uid]
    assert [each.uid for each in store.list_jobs(JobQuery(10, name="two"))] == [other.uid]
    assert [each.uid for each in store.jobs_in([State.ADMITTED])] == [job.uid]
    assert [len(store.jobs_in([state])) for state in (State.ADMITTED, State.QUEUED)] == [1, 1]


def test_changes_are_told_in_order_with_the_job_as_it_was(store: Store) -> None:
    job, lease = with_attempt(store)
    store.record_progress(lease, 15, {"step": 1}, [("CHECKPOINT_WRITTEN", "step 1")])
    store.record_progress(lease, 15, {"step": 2}, [])
    found = store.changes(0, "", 100)
    assert [event.reason if event else None for event in (one.event for one in found)] == [
        "CREATED",
        "ADMITTED",
        "ATTEMPT_CREATED",
        "CHECKPOINT_WRITTEN",
        None,
    ]
    assert [len(one.job.attempts) for one in found] == [0, 0, 1, 1, 1]
    assert [one.job.state for one in found][:2] == [State.QUEUED, State.ADMITTED]
    assert found[-1].job.progress == {"step": 2}
    assert found[0].job.spec == job.spec


def test_changes_can_be_read_on_from_anywhere(store: Store) -> None:
    jobs = [with_attempt(store) for _ in range(3)]
    for step in range(4):
        for _, lease in jobs:
            store.record_progress(lease, 15, {"step": step}, [("NOTE", str(step))] if step % 2 else [])
    whole = [one.resource_version for one in store.changes(0, "", 1000)]
    assert whole == sorted(set(whole))
    for limit in (1, 2, 5):
        cursor, seen = 0, []
        while page := store.changes(cursor, "", limit):
            seen += [one.resource_version for one in page]
            cursor = seen[-1]
        assert seen == whole
    mine = store.changes(0, jobs[1][0].uid, 1000)
    assert {one.uid for one in mine} == {jobs[1][0].uid}


def test_snapshot_is_in_the_order_of_resource_versions(store: Store) -> None:
    jobs = [store.create_job(new_job()) for _ in range(3)]
    store.transition(jobs[0], ADMIT)
    page = store.snapshot_page(0, "", 100)
    assert [job.uid for job in page] == [jobs[1].uid, jobs[2].uid, jobs[0].uid]
    assert [job.uid for job in store.snapshot_page(page[0].resource_version, "", 1)] == [jobs[2].uid]


def test_cursor_from_another_store_is_refused(store: Store) -> None:
    store.check_cursor(0)
    with pytest.raises(OutOfRange):
        store.check_cursor(5)


def test_whoever_watches_is_told_after_the_commit(store: Store) -> None:
    told: list[int] = []
    store.database.on_change = lambda: told.append(store.head_version())
    job, lease = with_attempt(store)
    assert told == [1, 2, 3]
    store.renew_lease(lease, 15)
    assert told == [1, 2, 3], "a heartbeat is no change"
    store.transition(job, Change("NOTE", ""))
    with pytest.raises(Conflict):
        store.transition(job, Change("NOTE", ""))
    assert told == [1, 2, 3, 4], "what was rolled back is no change"


def test_finished_job_publishes_once_and_moves_the_alias(store: Store) -> None:
    for number in (1, 2):
        assert publish(store, number).published_model == f"bot@{number}"
    assert store.model_alias("bot", "champion").version == 2
    assert store.model_newest("bot").path == "/m/2"
    assert store.model_version("bot", 1).aliases == ()
    assert [(move.version, move.previous_version) for move in store.alias_history("bot", "champion")] == [
        (1, 0),
        (2, 1),
    ]


def test_job_publishes_one_version_however_often_it_is_asked(store: Store) -> None:
    job = store.create_job(new_job())
    with store.database.write() as write:
        made = [alias_rows.publish(write, publication(1), job.uid).version for _ in range(2)]
    assert made == [1, 1]


def test_alias_moves_only_from_where_it_is_expected(store: Store) -> None:
    for number in (1, 2):
        publish(store, number)
    with pytest.raises(Conflict) as caught:
        store.set_alias("bot", "champion", 1, expected=1)
    assert caught.value.reason == "ALIAS_MOVED"
    with pytest.raises(Conflict):
        store.set_alias("bot", "champion", 1, expected=0)
    assert store.set_alias("bot", "champion", 1, expected=2).aliases == ("champion",)
    assert store.set_alias("bot", "stable", 2, expected=0).aliases == ("stable",)
    store.set_alias("bot", "stable", 2, expected=None)
    assert len(store.alias_history("bot", "stable")) == 1, "no move, no line"


def test_missing_models_say_what_there_is(store: Store) -> None:
    publish(store, 1)
    with pytest.raises(NotFound, match=r"bot@champion, bot@1"):
        store.model_alias("bot", "other")
    with pytest.raises(NotFound, match=r"no model of the name 'ghost'"):
        store.model_newest("ghost")
    with pytest.raises(NotFound):
        store.set_alias("bot", "champion", 9, None)


def test_models_are_listed_by_name_newest_first(store: Store) -> None:
    for number in (1, 2, 3):
        publish(store, number, alias=None)
    assert [model.version for model in store.list_models("", None, 2)] == [3, 2]
    assert [model.version for model in store.list_models("bot", ("bot", 2), 9)] == [1]
    assert store.list_models("ghost", None, 9) == []


def deployment(name: str = "desk") -> StoredDeployment:
    return StoredDeployment(name, "bot", "bot@1", "/m/1", 1, 1.0, 0.0, DeploymentState.PENDING, "", 0, 0)


def decided(store: Store, known: StoredDeployment, *changed: Revision, reason: str = "X") -> StoredDeployment:
    kept = {each.number: each for each in (*known.revisions, *changed)}
    decision = Decision(reason, "why", changed[-1].number, "ann", {"n": 1})
    return store.decide_deployment(known, replace(known, revisions=tuple(kept.values())), [decision])


def test_revisions_and_decisions_of_a_deployment(store: Store, open_store: Callable[[], Store]) -> None:
    publish(store, 1)
    publish(store, 2)
    gate = Gate(teacher="bot@1", max_latency_ratio=3.0, task_data="/d.csv", steps=(500, 2500))
    engine = ModelEngine("vllm", {"max_num_seqs": 8.0})
    first = store.create_deployment(replace(deployment(), autoscaling=Autoscaling(0, 4, 2.5), gate=gate, engine=engine))
    assert (first.revisions[0].model, first.revisions[0].phase) == ("bot@1", Phase.STARTING)
    assert (first.autoscaling, first.gate) == (Autoscaling(0, 4, 2.5), gate)
    assert (first.engine, first.revisions[0].engine) == (engine, engine)
    trial = Trial(gate, "bot@1", "/m/1", "secret", task_sha256="ab", live_at_step=7)
    canary = Revision(2, "bot@2", "/m/2", is_canary=True, weight=500, mirror_share=0.25, trial=trial)
    second = decided(store, first, replace(first.revisions[0], phase=Phase.LIVE, weight=10_000, was_live=True), canary)
    assert open_store().get_deployment("desk") == second == store.list_deployments()[0]
    assert (second.canary.trial, second.generation) == (trial, 2)
    with pytest.raises(Conflict, match="changed meanwhile"):
        decided(store, first, first.revisions[0])
    reasons = [each.decision.reason for each in store.deployment_decisions("desk", None, 10)]
    assert reasons == ["X", "DEPLOYMENT_CREATED"]
    newest = store.deployment_decisions("desk", None, 1)[0]
    assert (newest.decision.actor, newest.decision.figures) == ("ann", {"n": 1})
    assert [each.decision.reason for each in store.deployment_decisions("desk", newest.number, 10)] == [
        "DEPLOYMENT_CREATED"
    ]


def test_what_a_judge_sees_is_counted_and_survives_decisions(store: Store) -> None:
    publish(store, 1)
    known = store.create_deployment(deployment())
    canary = Revision(2, "bot@1", "/m/1", is_canary=True, trial=Trial(Gate(), "bot@1", "/m/1", "secret"))
    known = decided(store, known, canary)
    for _ in range(2):
        store.observe_canary("desk", 2, "secret", lambda trial: {"n": trial.evidence.get("n", 0) + 1})
    decided(store, known, replace(known.revisions[1], weight=100))
    assert store.get_deployment("desk").canary.trial.evidence == {"n": 2}
    for number, token in ((2, "other"), (1, "secret"), (3, "secret")):
        with pytest.raises(PreconditionFailed) as caught:
            store.observe_canary("desk", number, token, lambda trial: {})
        assert caught.value.reason == "LEASE_LOST"
    known = store.get_deployment("desk")
    decided(store, known, replace(known.revisions[1], phase=Phase.DRAINING))
    with pytest.raises(PreconditionFailed, match="end at once"):
        store.observe_canary("desk", 2, "secret", lambda trial: {})


def test_of_revisions_that_are_gone_the_newest_few_stay(store: Store) -> None:
    publish(store, 1)
    known = store.create_deployment(deployment())
    for number in range(2, 26):
        gone = replace(known.revisions[-1], phase=Phase.GONE)
        known = decided(store, known, gone, Revision(number, "bot@1", "/m/1"))
    numbers = [each.number for each in known.revisions]
    assert (numbers[0], numbers[-1], len(store.deployment_decisions("desk", None, 100))) == (6, 25, 25)


def test_the_same_request_makes_one_deployment(store: Store) -> None:
    publish(store, 1)
    made = store.create_deployment(deployment(), "r-1", "hash")
    assert store.create_deployment(deployment(), "r-1", "hash") == made
    with pytest.raises(AlreadyExists) as caught:
        store.create_deployment(deployment(), "r-1", "other hash")
    assert caught.value.reason == "REQUEST_ID_REUSED"


def test_deployments(store: Store) -> None:
    with pytest.raises(NotFound):
        store.create_deployment(deployment())
    publish(store, 1)
    store.create_deployment(deployment())
    with pytest.raises(AlreadyExists):
        store.create_deployment(deployment())
    store.note_deployment("desk", DeploymentState.READY, "answers", "http://x/desk/v1", 1)
    assert store.get_deployment("desk").state is DeploymentState.READY
    store.forget_deployment("desk")
    assert store.get_deployment("desk").endpoint == "http://x/desk/v1", "only what is being deleted is forgotten"
    store.delete_deployment("desk")
    store.note_deployment("desk", DeploymentState.READY, "too late", "", 2)
    assert store.list_deployments()[0].state is DeploymentState.DELETING
    with pytest.raises(AlreadyExists, match="being deleted"):
        store.create_deployment(deployment())
    store.forget_deployment("desk")
    with pytest.raises(NotFound):
        store.get_deployment("desk")
    with pytest.raises(NotFound):
        store.delete_deployment("desk")


def test_sqlite_is_durable_and_shared(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'a' / 'athanor.db'}")
    with store.database.read() as connection:
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert pragmas == ["wal", 2, 1]
    store.close()


def test_locked_database_is_unavailable_and_not_an_internal_error(tmp_path: Path) -> None:
    path = tmp_path / "athanor.db"
    store = Store.open(f"sqlite:///{path}")
    with store.database.read() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        store.create_job(new_job())
    other.execute("ROLLBACK")
    other.close()
    assert store.create_job(new_job()).state is State.QUEUED
    store.close()


def test_only_the_owner_reads_the_database(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'athanor.db'}")
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.glob("athanor.db*"))
    store.close()


def waiting(store: Store, name: str, project: str = "default", **fields: Any) -> str:
    new = replace(new_job(name), project=project, **fields)
    return store.create_job(new).uid


def test_heads_of_every_queue_come_in_order_and_without_those_that_may_not_begin(store: Store) -> None:
    later_us = store.now_us() + 3_600_000_000
    first, low = waiting(store, "first"), waiting(store, "low", priority=100)
    high, third = waiting(store, "high", priority=900), waiting(store, "third")
    waiting(store, "held", hold_until_us=later_us)
    waiting(store, "depends", depends_on=(first,))
    other = waiting(store, "other", project="care", hold_until_us=store.now_us() - 1)
    store.transition(store.get_job(third), Change("PAUSED", "", State.PAUSED))
    assert [entry.uid for entry in store.queue_heads(10)] == [other, high, first, low]
    assert [entry.uid for entry in store.queue_heads(1)] == [other, high]
    assert store.next_hold() == later_us
    assert store.num_waiting() == 6
    assert {uid for uid, _, _ in store.specs_of([first, high, "none"])} == {first, high}


def test_dependencies_are_met_one_by_one_or_in_vain(store: Store) -> None:
    good, bad = waiting(store, "good"), waiting(store, "bad")
    both, only_good = waiting(store, "both", depends_on=(good, bad)), waiting(store, "only", depends_on=(good,))
    assert [store.get_job(uid).num_unmet for uid in (both, only_good)] == [2, 1]
    job = store.transition(store.get_job(good), ADMIT)
    store.transition(store.transition(job, Change("SUBMITTED", "", State.STARTING)), Change("", "", State.SUCCEEDED))
    assert [store.get_job(uid).num_unmet for uid in (both, only_good)] == [1, 0]
    store.transition(store.get_job(bad), Change("SPEC_UNREADABLE", "", State.FAILED))
    assert [job.uid for job in store.doomed(10)] == [both]
    late = waiting(store, "late", depends_on=(good, "gone-aaaaaaaa"))
    assert [job.uid for job in store.doomed(10)] == [both, late]
    assert store.states_of([good, bad, "gone-aaaaaaaa"]) == {good: State.SUCCEEDED, bad: State.FAILED}


def test_what_a_dependency_publishes_is_handed_to_whoever_names_it(store: Store) -> None:
    publish = {"publish": {"model": "teacher", "alias": "best"}}
    spec = {"teachers": [{"model": "teacher@best"}], "student": {"model": "base@2"}}
    teacher = waiting(store, "teacher", spec=publish)
    early, other = (
        waiting(store, name, depends_on=(teacher,), spec=each) for name, each in (("early", spec), ("other", {}))
    )
    assert store.get_job(early).resolved_models == {}
    job = store.transition(store.transition(store.get_job(teacher), ADMIT), Change("SUBMITTED", "", State.STARTING))
    made = Publication("teacher", "best", "/models/teacher", "", (), 1, {})
    store.transition(job, Change("", "", State.SUCCEEDED, publication=made))
    assert store.get_job(early).resolved_models == {"teacher@best": "teacher@1"}
    assert store.get_job(other).resolved_models == {}
    with pytest.raises(PreconditionFailed, match=early):
        store.delete_model("teacher", 1)
    late = waiting(store, "late", depends_on=(teacher,), spec=spec)
    assert store.get_job(late).resolved_models == {"teacher@best": "teacher@1"}, "it ended while this was looked at"
    pinned = waiting(store, "pinned", depends_on=(teacher,), spec=spec, resolved_models={"teacher@best": "teacher@1"})
    assert store.get_job(pinned).resolved_models == {"teacher@best": "teacher@1"}


def test_version_of_the_queue_changes_with_steps_and_quotas_and_not_with_progress(store: Store) -> None:
    job, lease = with_attempt(store)
    versions = [store.queue_version()]
    store.record_progress(lease, 15.0, {"step": 1}, ())
    assert store.queue_version() == versions[0]
    store.create_job(new_job())
    versions.append(store.queue_version())
    store.set_quota("care", {"cpus": 4.0, "gpus": None, "jobs": 2}, 2.0)
    versions.append(store.queue_version())
    store.set_quota("care", {}, 2.0)
    versions.append(store.queue_version())
    assert len(set(map(repr, versions))) == 4
    assert store.quotas() == {"care": Quota(weight=2.0)}
    del job


def test_standings_are_kept_with_their_words(store: Store, open_store: Callable[[], Store]) -> None:
    assert store.standings() == (0, {})
    said = {"b": Standing(1, "RESOURCES", "by noon"), "a": Standing(2, "QUOTA", WORDS["QUOTA"])}
    store.save_standings(said)
    decided_us, found = open_store().standings()
    assert decided_us > 0
    assert (found, list(found)) == (said, ["b", "a"])
    store.save_standings({})
    assert store.standings()[1] == {}


def test_jobs_to_tend_are_those_that_hold_something_or_come_back(store: Store) -> None:
    waiting(store, "waits")
    active, _ = with_attempt(store)
    ended, _ = with_attempt(store)
    ended = store.transition(ended, Change("", "", State.FAILED, attempt={"end_time_us": 1}))
    released, _ = with_attempt(store)
    store.transition(released, Change("", "", State.FAILED, attempt={"end_time_us": 1, "released": True}))
    away = store.transition(store.get_job(waiting(store, "away")), Change("PAUSED", "", State.PAUSED))
    back = store.transition(store.get_job(waiting(store, "back")), Change("PREEMPTED", "", State.PAUSED))
    assert [job.uid for job in store.to_tend()] == [active.uid, ended.uid, back.uid]
    assert [job.uid for job in store.unreleased()] == [ended.uid]
    assert not away.may_hold


def test_time_in_running_is_added_up(database_url: str) -> None:
    now_s = [1_800_000_000.0]
    store = Store.open(database_url, lambda: now_s[0])
    job = store.transition(store.create_job(new_job()), ADMIT)
    for seconds in (60.0, 30.0):
        for state in (State.STARTING, State.RUNNING):
            now_s[0] += 100.0
            job = store.transition(job, Change("", "", state))
        now_s[0] += seconds
        assert job.ran_until(store.now_us()) == job.ran_us + int(seconds * 1e6)
        job = store.transition(job, Change("", "", State.RECOVERING))
    assert (job.ran_us, job.running_since_us) == (90_000_000, None)
    store.close()


def test_the_queue_goes_by_the_rules_that_are_given(database_url: str) -> None:
    """An hour of waiting is worth a point by the first rules, and 10 000 points by the second."""
    started = 1_000_000.0
    with_rules = partial(Store.open, database_url)
    slow, fast = Rules(ageing_per_hour=1.0), Rules(ageing_per_hour=10_000.0)
    first = with_rules(lambda: started, slow)
    old = first.create_job(new_job(priority=100)).uid
    first.close()
    second = with_rules(lambda: started + 3600.0, slow)
    young = second.create_job(new_job(priority=200)).uid
    assert [entry.uid for entry in second.queue_heads(9)] == [young, old]
    second.close()
    third = with_rules(lambda: started + 7200.0, fast)
    assert [entry.uid for entry in third.queue_heads(9)] == [old, young], "put in order when the rules are others"
    third.transition(third.get_job(young), Change("UPDATED", "", job={"priority": 1000}))
    assert [entry.uid for entry in third.queue_heads(9)] == [old, young]
    last = third.create_job(new_job(priority=1000)).uid
    assert [entry.uid for entry in third.queue_heads(9)] == [old, young, last]
    third.close()
