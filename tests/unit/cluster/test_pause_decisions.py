"""Pause and resume, told by people or by the scheduler: stories on a clock that stands still."""

from __future__ import annotations

import pytest
from athanor.v1 import worker_service_pb2
from fakes import World

from cluster import wishes
from cluster.lifecycle import PREEMPTED, State


async def test_a_paused_job_writes_a_checkpoint_lets_go_and_goes_on_when_it_is_resumed(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    world.wish(uid, wishes.pause, "the weekend")
    assert await driver.heartbeat() == worker_service_pb2.DIRECTIVE_PAUSE
    await driver.report(driver.record("PAUSED", message="paused at step 7"))
    driver.exit()
    await world.rounds(3)
    job = world.job(uid)
    assert (job.state, job.reason, job.message) == (State.PAUSED, "PAUSED", "paused at step 7")
    assert not job.may_hold
    world.wish(uid, wishes.resume)
    await world.rounds(2)
    assert world.submitted(uid)[-1].ray_job_id == f"{uid}-2"
    assert (job.infrastructure_failures, job.user_failures, job.preemptions) == (0, 0, 0)


async def test_a_driver_that_writes_no_checkpoint_is_stopped_after_a_grace(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    world.wish(uid, wishes.pause, "now")
    world.clock.advance(world.settings.pause_grace_s)
    await driver.heartbeat()
    await world.rounds(2)
    assert world.ray.stopped == []
    world.clock.advance(1)
    await world.rounds(2)
    assert world.ray.stopped == [driver.ray_job_id]
    assert world.state(uid) is State.PAUSING, "its lease lasts: without a record Ray's word alone is not enough"
    world.clock.advance(world.settings.lease_s + 1)
    await world.rounds(2)
    assert world.state(uid) is State.PAUSED


async def test_no_second_driver_while_a_pausing_one_may_live(world: World) -> None:
    """Ray says that it ended, it left no record, and its lease lasts: it may live on and write."""
    uid = world.create()
    driver = await world.running(uid)
    world.wish(uid, wishes.preempt, "another-aaaaaaaa")
    world.ray.end(driver.ray_job_id)
    await world.rounds(3)
    assert (world.state(uid), world.job(uid).reason) == (State.PAUSING, PREEMPTED)
    assert await driver.heartbeat() == worker_service_pb2.DIRECTIVE_PAUSE
    world.clock.advance(world.settings.lease_s + 1)
    await world.rounds(3)
    job = world.job(uid)
    assert (job.state, len(job.attempts), job.preemptions) == (State.STARTING, 2, 1)
    assert job.attempts[0].reason == "PAUSED"


async def test_a_job_paused_while_it_makes_room_stays_away(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    world.wish(uid, wishes.preempt, "another-aaaaaaaa")
    world.wish(uid, wishes.pause, "for longer")
    await driver.report(driver.record("PAUSED"))
    driver.exit()
    await world.rounds(3)
    assert (world.state(uid), world.job(uid).reason) == (State.PAUSED, "PAUSED")


@pytest.mark.parametrize("reason", ["PAUSED", PREEMPTED])
async def test_a_paused_job_is_cancelled_at_once_and_its_driver_let_go_of(world: World, reason: str) -> None:
    uid = world.create()
    driver = await world.running(uid)
    if reason == PREEMPTED:
        world.wish(uid, wishes.preempt, "another-aaaaaaaa")
    else:
        world.wish(uid, wishes.pause, "a while")
    await driver.report(driver.record("PAUSED"))
    await world.rounds()
    assert world.job(uid).reason == reason
    world.wish(uid, wishes.cancel, "enough", None)
    await world.rounds(2)
    assert world.state(uid) is State.CANCELLED
    assert [job.uid for job in world.store.unreleased()] == [uid]
    driver.exit()
    await world.rounds(2)
    assert world.store.unreleased() == []
    assert world.terminal_events(uid) == [State.CANCELLED]


async def test_a_preempted_job_back_in_the_queue_is_cancelled_there(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    world.wish(uid, wishes.preempt, "another-aaaaaaaa")
    await driver.report(driver.record("PAUSED"))
    driver.exit()
    world.ray.hides_nodes = True
    await world.rounds(3)
    assert world.state(uid) is State.QUEUED
    world.wish(uid, wishes.cancel, "enough", None)
    await world.rounds(2)
    assert world.state(uid) is State.CANCELLED
    assert len(world.job(uid).attempts) == 1


async def test_cancel_of_a_pausing_job_wins(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    world.wish(uid, wishes.pause, "a while")
    world.wish(uid, wishes.cancel, "no, enough", None)
    assert await driver.heartbeat() == worker_service_pb2.DIRECTIVE_CANCEL
    await driver.report(driver.record("PAUSED", message="it was pausing already"))
    assert world.state(uid) is State.CANCELLED


async def test_max_run_duration_counts_no_pause(world: World) -> None:
    uid = world.create(schedule={"max_run_duration": "60s"})
    driver = await world.running(uid)
    world.clock.advance(50)
    world.wish(uid, wishes.pause, "a while")
    world.clock.advance(500)
    await driver.report(driver.record("PAUSED"))
    driver.exit()
    await world.rounds(2)
    world.wish(uid, wishes.resume)
    world.clock.advance(500)
    driver = await world.running(uid)
    world.clock.advance(10)
    await world.rounds()
    assert world.state(uid) is State.RUNNING
    world.clock.advance(1)
    await world.rounds()
    assert (world.state(uid), world.job(uid).reason) == (State.FAILED, "MAX_RUN_DURATION")
    assert world.ray.stopped == [driver.ray_job_id]


async def test_an_unreachable_ray_leaves_no_mark_on_who_waits(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    world.wish(uid, wishes.preempt, "another-aaaaaaaa")
    await driver.report(driver.record("PAUSED"))
    world.ray.is_reachable = False
    await world.rounds(2)
    condition = world.job(uid).condition("Unreachable")
    assert condition is not None
    assert condition["status"] is True
    driver.exit()
    world.ray.is_reachable, world.ray.hides_nodes = True, True
    await world.rounds(2)
    job = world.job(uid)
    assert (job.state, job.conditions) == (State.QUEUED, [])
