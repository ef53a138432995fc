"""Who begins, who waits and why, who makes room: stories over a real store, on a clock that stands still.

The cluster of these tests is one node of four CPUs; a job asks for one, unless it says otherwise.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fakes import FakeDriver, World

from cluster import wishes
from cluster.capacity import Resources
from cluster.launcher import RayNode
from cluster.lifecycle import State
from cluster.store.store import Store


def asking(cpus: float, workers: int = 1) -> dict[str, Any]:
    return {"student": {"workers": workers, "cpus_per_worker": cpus}}


def drivers(world: World, uid: str) -> list[FakeDriver]:
    return [FakeDriver(world, each) for each in world.submitted(uid)]


async def run(world: World, *uids: str) -> None:
    """Have their newest drivers heard."""
    for uid in uids:
        await drivers(world, uid)[-1].heartbeat()
        assert world.state(uid) is State.RUNNING


async def finish(world: World, uid: str, outcome: str = "SUCCEEDED") -> None:
    driver = drivers(world, uid)[-1]
    await driver.report(driver.record(outcome))
    driver.exit()
    await world.rounds(2)


async def test_a_job_begins_when_all_of_it_has_room_and_not_before(wide: World) -> None:
    small, gang = wide.create(), wide.create(resources=asking(1, workers=4))
    await wide.rounds(3)
    assert (wide.state(small), wide.state(gang)) == (State.STARTING, State.QUEUED)
    position, reason, words = wide.standing(gang)
    assert (position, reason) == (1, "RESOURCES")
    assert "all of it at once" in words
    await run(wide, small)
    await finish(wide, small)
    assert wide.state(gang) is State.STARTING


async def test_a_short_job_goes_before_a_head_that_it_cannot_delay(wide: World) -> None:
    running = wide.create(resources=asking(2), schedule={"max_run_duration": "2h"})
    await wide.rounds(2)
    await run(wide, running)
    head = wide.create(resources=asking(4))
    await wide.rounds()
    short = wide.create(resources=asking(2), schedule={"max_run_duration": "1h"})
    endless = wide.create(resources=asking(2))
    await wide.rounds(2)
    assert [wide.state(uid) for uid in (head, short, endless)] == [State.QUEUED, State.STARTING, State.QUEUED]
    assert wide.standing(endless).reason == "BEHIND_OTHERS"
    ends = datetime.fromtimestamp(wide.clock.now_s + 7200, UTC)
    assert f"by {ends:%Y-%m-%d %H:%M:%S} UTC at the latest" in wide.standing(head).message


async def test_a_job_that_the_cluster_cannot_hold_says_what_is_missing_and_keeps_nobody_waiting(wide: World) -> None:
    total = wide.create(resources=asking(3, workers=2))
    each = wide.create(resources=asking(3, workers=2), schedule={"priority": 900})
    fits = wide.create()
    await wide.rounds(2)
    assert wide.state(fits) is State.STARTING
    assert wide.standing(total) == (2, "TOO_LARGE", "it asks for 6 CPUs at once; the cluster has 4 CPUs in all")
    wide.ray.nodes_now = [RayNode(name, "10.0.0.1", Resources(2.0)) for name in "abcd"]
    wide.clock.advance(6)
    await wide.rounds()
    words = "it asks for 2 × 3 CPUs, each on one node; even empty, the nodes have room for 0"
    assert wide.standing(each).message == words
    wide.ray.nodes_now = [RayNode(name, "10.0.0.1", Resources(4.0)) for name in "abcd"]
    wide.clock.advance(6)
    await wide.rounds(2)
    assert {wide.state(total), wide.state(each)} == {State.STARTING}, "nodes that come are noticed"


async def test_dead_nodes_hold_nothing(wide: World) -> None:
    wide.ray.nodes_now = [RayNode("dead", "10.0.0.1", Resources(64.0), is_alive=False)]
    uid = wide.create()
    await wide.rounds(2)
    assert wide.standing(uid).reason == "TOO_LARGE"


async def test_quotas_of_a_project(wide: World) -> None:
    wide.store.set_quota("care", {"cpus": 2.0, "jobs": 5}, 1.0)
    care = [wide.create(project="care") for _ in range(3)]
    other = wide.create(project="other")
    await wide.rounds(2)
    assert [wide.state(uid) for uid in (*care, other)] == [State.STARTING] * 2 + [State.QUEUED, State.STARTING]
    words = "its project holds 2 of the 2 CPUs that it may; it asks for 1"
    assert wide.standing(care[2])[1:] == ("QUOTA", words)
    wide.store.set_quota("care", {"cpus": 0.5, "jobs": 5}, 1.0)
    await wide.rounds(2)
    words = "it asks for 1 CPU, and its project may hold 0.5 at once"
    assert wide.standing(care[2])[1:] == ("OVER_QUOTA", words)
    wide.store.set_quota("care", {"cpus": None, "jobs": 2}, 1.0)
    await wide.rounds(2)
    assert wide.standing(care[2]).message == "its project holds 2 of the 2 running jobs that it may"
    assert wide.state(care[2]) is State.QUEUED
    wide.store.set_quota("care", {}, 1.0)
    await wide.rounds(2)
    assert wide.state(care[2]) is State.STARTING


async def test_as_many_jobs_run_as_the_installation_allows(world: World) -> None:
    first, second = world.create(), world.create()
    await world.rounds(3)
    assert (world.state(first), world.state(second)) == (State.STARTING, State.QUEUED)
    assert world.standing(second).reason == "RUNNING_JOBS_LIMIT"


async def test_a_held_job_wakes_up_at_its_time(wide: World) -> None:
    until = datetime.fromtimestamp(wide.clock.now_s, UTC) + timedelta(hours=1)
    uid, behind = wide.create(schedule={"hold_until": until.isoformat()}), wide.create()
    await wide.rounds(2)
    assert (wide.state(uid), wide.state(behind)) == (State.QUEUED, State.STARTING)
    assert wide.standing(uid) == (0, "HELD", f"it is held until {until:%Y-%m-%d %H:%M:%S} UTC")
    wide.clock.advance(3599)
    await wide.rounds(2)
    assert wide.state(uid) is State.QUEUED
    wide.clock.advance(1)
    await wide.rounds(2)
    assert wide.state(uid) is State.STARTING


async def test_a_job_waits_for_those_that_it_depends_on(wide: World) -> None:
    done, first, second = wide.create(), wide.create(), wide.create()
    await wide.rounds(2)
    await run(wide, done, first, second)
    await finish(wide, done)
    uid = wide.create(schedule={"depends_on": [done, first, second]})
    await wide.rounds(2)
    assert wide.standing(uid) == (0, "DEPENDENCY", "it waits for 2 of the jobs that it depends on")
    await finish(wide, first)
    assert wide.state(uid) is State.QUEUED
    await finish(wide, second)
    assert wide.state(uid) is State.STARTING


@pytest.mark.parametrize("is_known_before", [True, False])
async def test_a_job_whose_dependency_fails_is_never_begun(wide: World, is_known_before: bool) -> None:
    bad = wide.create()
    await wide.rounds(2)
    await run(wide, bad)
    early = [] if is_known_before else [wide.create(schedule={"depends_on": [bad]})]
    await finish(wide, bad, "USER_ERROR")
    uid = early[0] if early else wide.create(schedule={"depends_on": [bad]})
    chained = wide.create(schedule={"depends_on": [uid]})
    await wide.rounds(4)
    for one, on in ((uid, bad), (chained, uid)):
        job = wide.job(one)
        assert (job.state, job.reason, job.attempts) == (State.FAILED, "DEPENDENCY_FAILED", ())
        assert f"it depends on {on}, which ended as FAILED" in job.message


async def test_jobs_that_wait_for_others_hide_nobody(wide: World) -> None:
    """However many there are at the front of the queue."""
    wide.ray.is_reachable = False
    first = wide.create(schedule={"priority": 0})
    for _ in range(120):
        wide.create(schedule={"priority": 900, "depends_on": [first]})
    wide.ray.is_reachable = True
    await wide.rounds(2)
    assert wide.state(first) is State.STARTING


async def test_a_spec_that_cannot_be_read_fails_and_keeps_nobody_waiting(wide: World) -> None:
    bad = wide.create()
    with wide.store.database.write() as write:
        write.connection.exec_driver_sql("UPDATE jobs SET spec = '{\"unknown\": 1}'")
    good = wide.create()
    await wide.rounds(2)
    assert (wide.state(bad), wide.job(bad).reason) == (State.FAILED, "SPEC_UNREADABLE")
    assert wide.state(good) is State.STARTING


async def test_a_lower_job_makes_room_and_comes_back_by_itself(wide: World) -> None:
    low = wide.create(resources=asking(4), schedule={"priority": 100})
    await wide.rounds(2)
    await run(wide, low)
    wide.clock.advance(60)
    high = wide.create(resources=asking(4), schedule={"priority": 500})
    await wide.rounds(2)
    job = wide.job(low)
    assert (job.state, job.reason) == (State.PAUSING, "PREEMPTED")
    assert high in job.message
    driver = drivers(wide, low)[-1]
    await driver.heartbeat()
    await driver.report(driver.record("PAUSED", message="paused at step 7"))
    await wide.rounds(2)
    assert (wide.state(low), wide.state(high)) == (State.PAUSED, State.QUEUED), "its driver still lives"
    driver.exit()
    await wide.rounds(2)
    job = wide.job(low)
    assert (job.state, job.preemptions, job.infrastructure_failures) == (State.QUEUED, 1, 0)
    assert wide.state(high) is State.STARTING
    await run(wide, high)
    await finish(wide, high)
    assert [attempt.ray_job_id for attempt in wide.job(low).attempts] == [f"{low}-1", f"{low}-2"]
    assert wide.state(low) is State.STARTING


async def test_a_job_makes_room_as_often_as_its_budget_allows(wide: World) -> None:
    low = wide.create(resources=asking(4), schedule={"priority": 100, "retries": {"preemption": 0}})
    await wide.rounds(2)
    await run(wide, low)
    high = wide.create(resources=asking(4))
    await wide.rounds(3)
    assert (wide.state(low), wide.state(high)) == (State.RUNNING, State.QUEUED)


async def test_who_has_waited_long_makes_no_room_for_who_came_after(wide: World) -> None:
    low = wide.create(resources=asking(4), schedule={"priority": 100})
    wide.clock.advance(9 * 3600)
    await wide.rounds(2)
    await run(wide, low)
    high = wide.create(resources=asking(4), schedule={"priority": 500})
    await wide.rounds(3)
    assert (wide.state(low), wide.state(high)) == (State.RUNNING, State.QUEUED), "9 hours are worth 450 points"


async def test_nodes_that_cannot_be_seen_admit_nobody_and_stop_nothing_else(wide: World) -> None:
    running = wide.create()
    await wide.rounds(2)
    await run(wide, running)
    wide.ray.hides_nodes = True
    uid = wide.create()
    driver = drivers(wide, running)[-1]
    driver.write(driver.record("SUCCEEDED"))
    await wide.rounds(2)
    assert wide.state(running) is State.SUCCEEDED
    assert (wide.state(uid), wide.standing(uid).reason) == (State.QUEUED, "RAY_UNREACHABLE")
    wide.ray.hides_nodes = False
    wide.clock.advance(6)
    await wide.rounds()
    assert wide.state(uid) is State.STARTING


async def test_what_was_decided_is_not_decided_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Ray nor the queue is asked while nothing changes, and standings are not written anew."""
    first, second = world.create(), world.create()
    await world.rounds(3)
    asked, saved = world.ray.nodes_asked, world.store.standings()
    monkeypatch.setattr(Store, "queue_heads", lambda *_: pytest.fail("the queue was read"))
    monkeypatch.setattr(Store, "save_standings", lambda *_: pytest.fail("standings were written"))
    await world.rounds(5)
    await run(world, first)
    assert world.ray.nodes_asked == asked
    monkeypatch.undo()
    await finish(world, first)
    assert world.state(second) is State.STARTING
    assert saved[1].keys() == {second}
    assert world.store.standings()[1] == {}


async def test_a_step_that_came_too_late_is_decided_on_again(wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress came in between the decision and its step: that is no line in the history, and moves the job."""
    low = wide.create(resources=asking(4), schedule={"priority": 100})
    await wide.rounds(2)
    await run(wide, low)
    wide.create(resources=asking(4), schedule={"priority": 500})
    quotas, driver, told = wide.store.quotas, drivers(wide, low)[-1], list[int]()

    def progress_comes() -> Any:
        if not told:
            told.append(1)
            asyncio.run(driver.progress(1))
        return quotas()

    monkeypatch.setattr(wide.store, "quotas", progress_comes)
    await wide.rounds()
    assert (wide.state(low), told) == (State.RUNNING, [1])
    await wide.rounds()
    assert wide.state(low) is State.PAUSING


async def test_a_job_resumed_before_its_driver_is_gone_waits_for_that(wide: World) -> None:
    uid = wide.create()
    await wide.rounds(2)
    await run(wide, uid)
    wide.wish(uid, wishes.pause, "a while")
    driver = drivers(wide, uid)[-1]
    await driver.report(driver.record("PAUSED"))
    await wide.rounds()
    assert wide.state(uid) is State.PAUSED
    wide.wish(uid, wishes.resume)
    await wide.rounds(3)
    assert (wide.state(uid), wide.standing(uid).reason) == (State.QUEUED, "RELEASING")
    driver.exit()
    await wide.rounds(3)
    assert wide.state(uid) is State.STARTING
    assert len(wide.job(uid).attempts) == 2


async def test_a_job_paused_in_the_queue_stays_away_until_it_is_resumed(wide: World) -> None:
    uid = wide.create()
    wide.wish(uid, wishes.pause, "not yet")
    await wide.rounds(3)
    assert (wide.state(uid), wide.store.standings_of([wide.job(uid)])) == (State.PAUSED, {})
    wide.wish(uid, wishes.resume)
    await wide.rounds(2)
    assert wide.state(uid) is State.STARTING


async def test_a_decision_survives_a_restart(world: World) -> None:
    first, second = world.create(), world.create()
    await world.rounds(2)
    world.restart()
    assert world.standing(second).reason == "RUNNING_JOBS_LIMIT"
    await world.rounds()
    await run(world, first)
    await finish(world, first)
    assert world.state(second) is State.STARTING


async def test_a_hundred_and_more_who_never_fit_keep_nobody_behind_them(wide: World) -> None:
    wide.store.set_quota("a", {"cpus": 2.0}, 1.0)
    for number in range(250):
        wide.create(project="ab"[number % 2], resources=asking(64 if number % 2 else 3))
    behind, allowed = wide.create(project="b"), wide.create(project="a", resources=asking(2))
    await wide.rounds(2)
    assert (wide.state(behind), wide.state(allowed)) == (State.STARTING, State.STARTING)


async def test_a_project_that_holds_as_many_jobs_as_it_may_is_not_looked_through(
    wide: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide.store.set_quota("default", {"jobs": 0.0}, 1.0)
    for _ in range(150):
        wide.create()
    pages, heads = [], wide.store.queue_heads

    def counted(most: int, *behind: Any) -> Any:
        pages.append(most)
        return heads(most, *behind)

    monkeypatch.setattr(wide.store, "queue_heads", counted)
    await wide.rounds()
    assert pages == [100]
