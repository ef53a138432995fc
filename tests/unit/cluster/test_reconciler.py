"""Whole stories of jobs, step by step, on a clock that stands still."""

from __future__ import annotations

import asyncio
import errno
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from athanor.v1 import worker_service_pb2
from fakes import FakeDriver, World, struct

from cluster import attempt_files
from cluster.changes import BLOCKED, UNREACHABLE
from cluster.errors import InvalidInput, PreconditionFailed
from cluster.ids import hash_token
from cluster.launcher import RayJob
from cluster.lifecycle import State
from cluster.store.records import Change


def cancel(world: World, uid: str) -> None:
    job = world.job(uid)
    world.store.transition(
        job, Change("CANCEL_ASKED", "enough", State.CANCELLING, job={"cancel_time_us": world.store.now_us()})
    )


async def test_a_job_from_the_queue_to_the_registry(world: World) -> None:
    uid = world.create()
    await world.rounds(2)
    assert world.state(uid) is State.STARTING
    driver = world.driver()
    assert await driver.heartbeat() == worker_service_pb2.DIRECTIVE_CONTINUE
    await driver.progress(3, ("CHECKPOINT_WRITTEN", "step 3"))
    model_dir = world.settings.publish_dir("student", uid)
    model_dir.mkdir(parents=True)
    (model_dir / "athanor.json").write_text('{"report": {"parameters": {"student": 1234}}}')
    summary = struct({"student": {"exact_match": 0.9}})
    record = driver.record("SUCCEEDED", model_path=str(model_dir), model_manifest_sha256="ab" * 32, summary=summary)
    driver.write(record)
    await driver.report(record)
    driver.exit()
    await world.rounds()
    job = world.job(uid)
    assert (job.state, job.published_model) == (State.SUCCEEDED, "student@1")
    assert job.progress is not None
    assert job.progress["step"] == 3
    model = world.store.model_alias("student", "champion")
    assert (model.version, model.job_uid, model.num_parameters) == (1, uid, 1234)
    assert model.metrics == {"exact_match": 0.9}
    assert job.last_attempt is not None
    assert job.last_attempt.released
    assert world.history(uid) == [
        "CREATED",
        "ADMITTED",
        "ATTEMPT_CREATED",
        "SUBMITTED",
        "RUNNING",
        "CHECKPOINT_WRITTEN",
        "SUCCEEDED",
    ]


async def test_attempt_file_is_private_and_its_token_is_stored_only_as_a_hash(world: World) -> None:
    uid = world.create()
    await world.rounds(2)
    driver = world.driver()
    assert stat.S_IMODE(driver.path.stat().st_mode) == 0o600
    document = json.loads(driver.path.read_text())
    assert document["publish_dir"] == str(world.settings.storage / "models" / "student" / uid)
    assert (document["job_uid"], document["attempt"], document["kind"]) == (uid, 1, "FineTune")
    attempt = world.job(uid).last_attempt
    assert attempt is not None
    assert attempt.lease_token_sha256 == hash_token(document["lease_token"])
    token = document["lease_token"].encode()
    assert not [path for path in Path(world.settings.home).glob("athanor.db*") if token in path.read_bytes()]


async def test_jobs_run_one_after_another_by_priority_then_age(world: World) -> None:
    low = world.create("low", schedule={"priority": 100})
    older, younger = world.create("older"), world.create("younger")
    for expected in (older, younger, low):
        driver = await world.running(expected)
        assert sum(world.state(uid) is State.QUEUED for uid in (low, older, younger)) <= 2
        await driver.report(driver.record("SUCCEEDED"))
        await world.rounds()
        assert len(world.ray.submissions) == [older, younger, low].index(expected) + 1, "the old driver still lives"
        driver.exit()


async def test_unreachable_ray_changes_no_state(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    world.ray.is_reachable = False
    world.clock.advance(10_000)
    await world.rounds(5)
    job = world.job(uid)
    assert job.state is State.RUNNING
    condition = job.condition(UNREACHABLE)
    assert condition is not None
    assert (condition["status"], condition["reason"]) == (True, "RAY_UNREACHABLE")
    assert world.history(uid).count("RAY_UNREACHABLE") == 1
    world.ray.is_reachable = True
    await driver.heartbeat()
    await world.rounds(2)
    job = world.job(uid)
    assert job.state is State.RUNNING
    assert job.condition(UNREACHABLE)["status"] is False
    assert len(job.attempts) == 1


async def test_unreachable_ray_keeps_a_job_in_the_queue(world: World) -> None:
    world.ray.is_reachable = False
    uid = world.create()
    await world.rounds(4)
    assert (world.state(uid), world.standing(uid).reason) == (State.QUEUED, "RAY_UNREACHABLE")
    world.ray.is_reachable = True
    await world.rounds()
    assert world.state(uid) is State.STARTING


async def test_ray_that_goes_after_the_admission_keeps_the_job_waiting(world: World) -> None:
    uid = world.create()
    world.ray.refuses_to_start = True
    await world.rounds(4)
    assert world.state(uid) is State.ADMITTED
    world.ray.refuses_to_start = False
    await world.rounds()
    assert world.state(uid) is State.STARTING


async def test_result_counts_although_ray_is_gone(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    world.ray.is_reachable = False
    driver.write(driver.record("SUCCEEDED", model_path=driver.attempt["publish_dir"]))
    await world.rounds()
    job = world.job(uid)
    assert job.state is State.SUCCEEDED
    assert job.condition(UNREACHABLE) is None
    assert world.terminal_events(uid) == [State.SUCCEEDED]


async def test_lost_terminal_call_is_made_good_from_storage(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    record = driver.record("SUCCEEDED", model_path=driver.attempt["publish_dir"])
    driver.write(record)
    driver.exit()
    world.restart()
    await world.rounds(2)
    assert world.state(uid) is State.SUCCEEDED
    await FakeDriver(world, world.ray.submissions[0]).report(record)
    assert world.terminal_events(uid) == [State.SUCCEEDED]
    assert [model.version for model in world.store.list_models("student", None, 10)] == [1]


async def test_killed_driver_is_recovered_once_its_lease_is_over(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    driver.exit()
    await world.rounds(3)
    assert world.state(uid) is State.RUNNING, "Ray's word alone is not enough while the lease lasts"
    world.clock.advance(world.settings.lease_s + 1)
    await world.rounds(2)
    assert (world.state(uid), len(world.job(uid).attempts)) == (State.RECOVERING, 1), "the next one waits a second"
    world.clock.advance(1)
    await world.rounds(2)
    assert world.state(uid) is State.STARTING
    second = world.driver()
    assert second.ray_job_id == f"{uid}-2"
    with pytest.raises(PreconditionFailed, match="end at once"):
        await driver.heartbeat()
    await second.heartbeat()
    job = world.job(uid)
    assert (job.state, job.infrastructure_failures) == (State.RUNNING, 1)
    assert [attempt.reason for attempt in job.attempts] == ["DRIVER_LOST", ""]


async def test_nobody_is_given_up_before_a_control_plane_that_was_away_listened_for_a_lease(world: World) -> None:
    """Ray restarted meanwhile and says ENDED of a driver that lives on."""
    uid = world.create()
    driver = await world.running(uid)
    world.ray.end(driver.ray_job_id)
    world.clock.advance(10_000)
    world.restart()
    await world.rounds(2)
    assert (world.state(uid), len(world.job(uid).attempts)) == (State.RUNNING, 1)
    await driver.heartbeat()
    world.clock.advance(world.settings.lease_s - 1)
    await world.rounds(2)
    assert (world.state(uid), len(world.job(uid).attempts)) == (State.RUNNING, 1)
    world.clock.advance(2)
    await world.rounds()
    assert world.state(uid) is State.RECOVERING


async def test_silent_driver_that_ray_sees_alive_is_not_given_up(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    world.clock.advance(10_000)
    await world.rounds(3)
    job = world.job(uid)
    assert (job.state, len(job.attempts)) == (State.RUNNING, 1)
    assert job.condition(UNREACHABLE)["reason"] == "DRIVER_SILENT"
    assert "127.0.0.1:50051" in job.condition(UNREACHABLE)["message"]
    assert "ATHANOR_ADVERTISE" in job.condition(UNREACHABLE)["message"]
    await driver.heartbeat()
    await world.rounds()
    assert world.job(uid).condition(UNREACHABLE)["status"] is False


async def test_ray_that_lost_its_memory_is_believed_only_after_a_grace(world: World) -> None:
    uid = world.create()
    await world.running(uid)
    world.ray.views.clear()
    world.clock.advance(world.settings.lease_s + 1)
    await world.rounds(2)
    assert world.state(uid) is State.RUNNING
    world.clock.advance(world.settings.unknown_grace_s)
    await world.rounds()
    assert world.state(uid) is State.RECOVERING


async def test_submission_whose_answer_is_lost_is_not_repeated_as_another_job(world: World) -> None:
    uid = world.create()
    world.ray.loses_replies = True
    await world.rounds(3)
    world.ray.loses_replies = False
    await world.rounds()
    assert world.state(uid) is State.STARTING
    assert [submission.ray_job_id for submission in world.ray.submissions] == [f"{uid}-1"]
    await world.driver().heartbeat()
    assert world.state(uid) is State.RUNNING


async def test_driver_of_a_submission_in_flight_keeps_its_token(world: World) -> None:
    """Ray took the job, the answer was lost, and for a while Ray does not show it."""
    uid = world.create()
    world.ray.loses_replies = world.ray.hides_jobs = True
    await world.rounds()
    early = world.driver()
    await world.rounds(2)
    world.ray.loses_replies = world.ray.hides_jobs = False
    await early.heartbeat()
    assert world.state(uid) is State.RUNNING
    assert len(world.ray.submissions) == 1


async def test_refused_submission_fails_the_job_with_rays_words(world: World) -> None:
    world.ray.refuses = "entrypoint is wrong"
    uid = world.create()
    await world.rounds(2)
    job = world.job(uid)
    assert (job.state, job.reason) == (State.FAILED, "SUBMIT_REFUSED")
    assert "entrypoint is wrong" in job.message


async def test_infrastructure_errors_are_retried_within_their_budget(world: World) -> None:
    uid = world.create(schedule={"retries": {"infrastructure": 1}})
    for _ in range(2):
        driver = await world.running(uid)
        await driver.report(driver.record("INFRASTRUCTURE_ERROR", reason="WORKER_LOST", message="a worker died"))
        await world.rounds(2)
        assert not world.ray.live(uid) or world.ray.live(uid) == [driver.ray_job_id], "no second while the first lives"
        driver.exit()
        world.clock.advance(1)
    await world.rounds(2)
    job = world.job(uid)
    assert (job.state, job.reason, job.message) == (State.FAILED, "WORKER_LOST", "a worker died")
    assert len(job.attempts) == 2


async def test_user_errors_fail_at_once_by_default(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    await driver.report(driver.record("USER_ERROR", reason="DATA_EMPTY", message="no rows in train.jsonl"))
    job = world.job(uid)
    assert (job.state, job.reason, job.message) == (State.FAILED, "DATA_EMPTY", "no rows in train.jsonl")


async def test_driver_that_does_not_exit_after_its_record_is_stopped(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    await driver.report(driver.record("SUCCEEDED"))
    await world.rounds(2)
    assert world.ray.stopped == []
    world.clock.advance(world.settings.teardown_grace_s + 1)
    await world.rounds(2)
    assert world.ray.stopped == [driver.ray_job_id]
    assert world.store.unreleased() == []
    assert world.state(uid) is State.SUCCEEDED


async def test_cancel_in_the_queue(world: World) -> None:
    first, second = world.create(), world.create()
    await world.rounds(2)
    cancel(world, second)
    await world.rounds()
    assert world.state(second) is State.CANCELLED
    assert world.state(first) is State.STARTING
    assert world.job(second).attempts == ()


async def test_cancelled_driver_ends_by_itself(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    cancel(world, uid)
    assert await driver.heartbeat() == worker_service_pb2.DIRECTIVE_CANCEL
    await driver.report(driver.record("CANCELLED", reason="CANCELLED", message="ended at step 7"))
    driver.exit()
    await world.rounds()
    job = world.job(uid)
    assert (job.state, job.message) == (State.CANCELLED, "enough; ended at step 7")
    assert world.ray.stopped == []


async def test_cancelled_driver_that_does_not_listen_is_stopped_after_a_grace(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    cancel(world, uid)
    await world.rounds(2)
    assert world.state(uid) is State.CANCELLING
    world.clock.advance(world.settings.cancel_grace_s + 1)
    await world.rounds(2)
    assert world.ray.stopped == [driver.ray_job_id]
    assert world.state(uid) is State.CANCELLED


async def test_cancel_waits_while_ray_is_out_of_sight(world: World) -> None:
    uid = world.create()
    await world.running(uid)
    cancel(world, uid)
    world.ray.is_reachable = False
    world.clock.advance(10_000)
    await world.rounds(3)
    assert world.state(uid) is State.CANCELLING
    world.ray.is_reachable = True
    await world.rounds(2)
    assert world.state(uid) is State.CANCELLED


async def test_job_that_ended_well_before_it_saw_the_cancel_has_ended_well(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    cancel(world, uid)
    await driver.report(driver.record("SUCCEEDED", model_path=driver.attempt["publish_dir"]))
    assert world.state(uid) is State.SUCCEEDED
    assert world.job(uid).published_model == "student@1"


async def test_max_run_duration(world: World) -> None:
    uid = world.create(schedule={"max_run_duration": "60s"})
    driver = await world.running(uid)
    world.clock.advance(59)
    await world.rounds()
    assert world.state(uid) is State.RUNNING
    world.clock.advance(2)
    await world.rounds()
    job = world.job(uid)
    assert (job.state, job.reason) == (State.FAILED, "MAX_RUN_DURATION")
    assert world.ray.stopped == [driver.ray_job_id]
    with pytest.raises(PreconditionFailed):
        await driver.heartbeat()


async def test_max_run_duration_of_an_attempt_that_ended_before_it_was_stored(world: World) -> None:
    """Ray was told to stop it, and the control plane died: the driver says that it was terminated."""
    uid = world.create(schedule={"max_run_duration": "60s"})
    driver = await world.running(uid)
    world.clock.advance(61)
    await driver.report(driver.record("INFRASTRUCTURE_ERROR", reason="DRIVER_TERMINATED", message="told to end"))
    driver.exit()
    await world.rounds(2)
    job = world.job(uid)
    assert (job.state, job.reason) == (State.FAILED, "MAX_RUN_DURATION")
    assert [attempt.reason for attempt in job.attempts] == ["DRIVER_TERMINATED"]


async def test_driver_that_dies_before_its_first_word(world: World) -> None:
    uid = world.create(schedule={"retries": {"infrastructure": 0}})
    await world.rounds(2)
    world.driver().exit()
    await world.rounds()
    assert world.state(uid) is State.STARTING
    world.clock.advance(world.settings.lease_s + 1)
    await world.rounds()
    job = world.job(uid)
    assert (job.state, job.reason) == (State.FAILED, "DRIVER_LOST")


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_stale_lease_token_is_refused(world: World, token: str) -> None:
    uid = world.create()
    driver = await world.running(uid)
    driver.ref.lease_token = token
    record = driver.record("SUCCEEDED")
    for call in (driver.heartbeat(), driver.progress(1), driver.report(record)):
        with pytest.raises(PreconditionFailed) as caught:
            await call
        assert caught.value.reason == "LEASE_LOST"
    assert world.state(uid) is State.RUNNING


async def test_known_terminal_record_still_needs_the_token(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    record = driver.record("SUCCEEDED")
    await driver.report(record)
    await driver.report(record)
    driver.ref.lease_token = "wrong"
    with pytest.raises(PreconditionFailed):
        await driver.report(record)
    assert world.terminal_events(uid) == [State.SUCCEEDED]


async def test_the_same_terminal_record_twice_at_once_is_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = world.create()
    driver = await world.running(uid)
    renew_lease, record = world.store.renew_lease, driver.record("SUCCEEDED")

    def late(*asked: Any) -> object:
        monkeypatch.setattr(world.store, "renew_lease", renew_lease)
        asyncio.run(driver.report(record))  # the other one, in between
        return renew_lease(*asked)

    monkeypatch.setattr(world.store, "renew_lease", late)
    await driver.report(record)
    assert world.terminal_events(uid) == [State.SUCCEEDED]


async def test_second_terminal_record_is_refused(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    await driver.report(driver.record("SUCCEEDED"))
    with pytest.raises(PreconditionFailed):
        await driver.report(driver.record("USER_ERROR"))
    assert world.state(uid) is State.SUCCEEDED


async def test_torn_terminal_record_counts_as_none(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    (driver.path.parent / "terminal.json").write_text('{"outcome": "OUTCOME_SUCC')
    await world.rounds()
    assert world.state(uid) is State.RUNNING
    (driver.path.parent / "terminal.json").write_text("{}")
    await world.rounds()
    assert world.state(uid) is State.RUNNING


async def test_each_finished_job_publishes_the_next_version(world: World) -> None:
    for version in (1, 2):
        uid = world.create()
        driver = await world.running(uid)
        await driver.report(driver.record("SUCCEEDED", model_path=driver.attempt["publish_dir"]))
        driver.exit()
        await world.rounds()
        assert world.job(uid).published_model == f"student@{version}"
    assert world.store.model_alias("student", "champion").version == 2
    moves = [(each.version, each.previous_version) for each in world.store.alias_history("student", "champion")]
    assert moves == [(1, 0), (2, 1)]


async def test_one_bad_job_says_so_and_the_others_go_on(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = wide
    bad, good = world.create(schedule={"priority": 900}), world.create()
    look = world.ray.look

    async def fails(ray_job_id: str) -> RayJob:
        if ray_job_id.startswith(bad):
            raise UnicodeError("what nobody thought of")
        return await look(ray_job_id)

    await world.rounds(2)
    monkeypatch.setattr(world.ray, "look", fails)
    await world.rounds(3)
    condition = world.job(bad).condition(BLOCKED)
    assert condition is not None
    assert (condition["status"], condition["reason"]) == (True, "INTERNAL")
    assert "what nobody thought of" in condition["message"]
    assert world.history(bad).count("INTERNAL") == 1
    driver = next(FakeDriver(world, each) for each in world.submitted(good))
    driver.write(driver.record("SUCCEEDED"))
    await world.rounds()
    assert world.state(good) is State.SUCCEEDED
    monkeypatch.undo()
    await world.rounds()
    assert world.job(bad).condition(BLOCKED)["status"] is False


async def test_a_round_that_fails_is_not_the_last_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = world.create()

    async def fails() -> str:
        raise KeyError("ray_version")

    monkeypatch.setattr(world.ray, "version", fails)
    await world.rounds()
    monkeypatch.undo()
    await world.rounds(2)
    assert world.state(uid) is State.STARTING


@pytest.mark.parametrize(
    "wrong", [{"model_path": "/etc"}, {"report_path": "/etc/passwd"}, {"report_path": "{jobs}/../models/x"}]
)
async def test_a_record_that_names_places_outside_its_job_is_not_believed(world: World, wrong: dict[str, str]) -> None:
    uid = world.create()
    driver = await world.running(uid)
    fields = {name: path.format(jobs=world.settings.job_dir(uid)) for name, path in wrong.items()}
    record = driver.record("SUCCEEDED", **fields)
    with pytest.raises(InvalidInput):
        await driver.report(record)
    driver.write(record)
    await world.rounds()
    assert world.state(uid) is State.RUNNING
    assert world.store.list_models("student", None, 10) == []


async def test_no_file_is_looked_at_for_somebody_without_the_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = world.create()
    driver = await world.running(uid)
    driver.ref.lease_token = "stolen"
    monkeypatch.setattr(attempt_files, "with_parameters", lambda _: pytest.fail("a file was looked at"))
    with pytest.raises(PreconditionFailed):
        await driver.report(driver.record("SUCCEEDED", model_path=driver.attempt["publish_dir"]))


async def test_a_planned_stop_is_no_failure(world: World) -> None:
    uid = world.create(schedule={"retries": {"infrastructure": 0}})
    for attempt in (1, 2):
        driver = await world.running(uid)
        await driver.report(driver.record("INFRASTRUCTURE_ERROR", reason="DRIVER_TERMINATED", message="told to end"))
        driver.exit()
        await world.rounds(2)
        assert world.state(uid) is State.RECOVERING
        world.clock.advance(2)
        await world.rounds(2)
        job = world.job(uid)
        assert (job.state, job.infrastructure_failures) == (State.STARTING, 0)
        assert len(job.attempts) == attempt + 1


async def test_storage_that_is_not_there_is_said_on_the_job(world: World) -> None:
    uid = world.create()
    jobs = world.settings.storage / "jobs"
    jobs.rmdir()
    await world.rounds(3)
    job = world.job(uid)
    condition = job.condition(BLOCKED)
    assert condition is not None
    assert (job.state, condition["status"], condition["reason"]) == (State.ADMITTED, True, "STORAGE_UNAVAILABLE")
    assert str(jobs) in condition["message"]
    assert world.history(uid).count("STORAGE_UNAVAILABLE") == 1
    jobs.mkdir()
    await world.rounds(2)
    assert world.state(uid) is State.STARTING
    assert world.job(uid).condition(BLOCKED)["status"] is False


async def test_full_storage_is_said_on_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    uid = world.create()
    monkeypatch.setattr(attempt_files, "write_attempt", full)
    await world.rounds(2)
    assert "No space left on device" in world.job(uid).condition(BLOCKED)["message"]
