"""I1: the control plane is killed at every one of its effects, before it and after it, and started again.

The story has all the trouble at once: the first driver is killed, the second one's terminal call is lost.
"""

from __future__ import annotations

import pytest
from fakes import FakeDriver, Killed, Mortality, World

from cluster import attempt_files
from cluster.errors import PreconditionFailed
from cluster.lifecycle import State
from cluster.policy import View

_LONGEST_STORY = 40


async def _drivers_do_their_part(world: World, uid: str) -> None:
    """The first driver lives until it was heard, then it is killed. The second one writes its record and exits."""
    for submission in world.submitted(uid):
        if world.ray.views[submission.ray_job_id] is not View.ALIVE:
            continue
        driver = FakeDriver(world, submission)
        try:
            await driver.heartbeat()
        except PreconditionFailed:
            driver.exit()
            continue
        if submission.ray_job_id != f"{uid}-1":
            driver.write(driver.record("SUCCEEDED", model_path=driver.attempt["publish_dir"]))
        driver.exit()


async def _play(world: World, uid: str) -> None:
    for _ in range(_LONGEST_STORY):
        try:
            await world.reconciler.round()
            await _drivers_do_their_part(world, uid)
        except Killed:
            world.restart()
        if world.job(uid).is_terminal and not world.store.unreleased():
            return
        world.clock.advance(10)
    pytest.fail(f"not ended after {_LONGEST_STORY} rounds: {world.history(uid)}")


def _check(world: World, uid: str, version: int = 1) -> None:
    job = world.job(uid)
    assert job.state is State.SUCCEEDED
    assert world.terminal_events(uid) == [State.SUCCEEDED]
    assert [submission.ray_job_id for submission in world.submitted(uid)] == [f"{uid}-1", f"{uid}-2"]
    assert [attempt.reason for attempt in job.attempts] == ["DRIVER_LOST", "SUCCEEDED"]
    assert job.published_model == f"student@{version}"
    versions = [event.resource_version for event in world.store.job_events(uid)]
    assert versions == list(range(versions[0], world.store.head_version() + 1)), "the log has no gap"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_killed_at_every_effect(world: World, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    write_attempt = attempt_files.write_attempt
    monkeypatch.setattr(
        attempt_files, "write_attempt", lambda *args: world.mortality.around(lambda: write_attempt(*args))
    )
    at = 0
    while not at or world.mortality.has_struck:
        at += 1
        world.mortality = Mortality(at, after=after)
        world.restart()
        uid = world.create()
        await _play(world, uid)
        _check(world, uid, version=at)
    assert at > 12, "the story has at least so many effects"


async def test_restarted_between_every_two_rounds(world: World) -> None:
    uid = world.create()
    for _ in range(_LONGEST_STORY):
        world.restart()
        await world.reconciler.round()
        world.restart()
        await _drivers_do_their_part(world, uid)
        await world.reconciler.round()
        world.clock.advance(world.settings.lease_s + 1)
        await world.reconciler.round()
    _check(world, uid)
