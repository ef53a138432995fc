"""A clock that nobody's hand on the wall's moves much."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from fakes import World
from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import SteadyClock, _since_boot
from cluster.lifecycle import State

HOUR_S = 3600.0


@dataclass
class Times:
    """What a machine's two clocks show."""

    wall_s: float = 1_800_000_000.0
    monotonic_s: float = 5.0

    def pass_by(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


def steady(times: Times) -> SteadyClock:
    return SteadyClock(lambda: times.wall_s, lambda: times.monotonic_s)


@given(st.lists(st.tuples(st.floats(0, 60), st.sampled_from([0.0, 0.0, HOUR_S, -HOUR_S])), max_size=30))
def test_it_goes_on_as_time_passes_whatever_happens_to_the_wall(steps: list[tuple[float, float]]) -> None:
    times = Times()
    clock = steady(times)
    for seconds, jump in steps:
        before = clock()
        times.wall_s += jump
        times.pass_by(seconds)
        assert 0.9 * seconds - 1e-3 <= clock() - before <= 1.1 * seconds + 1e-3


@pytest.mark.parametrize("jump", [HOUR_S, -HOUR_S])
def test_it_is_right_again_in_the_end(jump: float) -> None:
    times = Times()
    clock = steady(times)
    times.wall_s += jump
    for _ in range(10 * 3600 // 60):
        times.pass_by(60)
        clock()
    assert clock() == pytest.approx(times.wall_s, abs=1.0)


async def test_a_driver_whose_control_plane_was_started_with_a_clock_set_forward_lives_on(world: World) -> None:
    """Its lease looks long over; Ray even says for a while that it knows no such job."""
    uid = world.create()
    driver = await world.running(uid)
    world.clock.advance(HOUR_S)
    world.restart()
    world.ray.hides_jobs = True
    await world.rounds(3)
    assert (world.state(uid), len(world.job(uid).attempts)) == (State.RUNNING, 1)
    await driver.heartbeat()
    world.ray.hides_jobs = False
    world.clock.advance(1)
    await world.rounds(2)
    assert (world.state(uid), len(world.job(uid).attempts)) == (State.RUNNING, 1)


async def test_a_clock_set_back_does_not_keep_the_dead_alive(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    world.clock.advance(-HOUR_S)
    world.restart()
    driver.exit()
    world.clock.advance(world.settings.lease_s - 1)
    await world.rounds(2)
    assert world.state(uid) is State.RUNNING
    world.clock.advance(2)
    await world.rounds(2)
    assert (world.state(uid), world.job(uid).reason) == (State.RECOVERING, "DRIVER_LOST")
    world.clock.advance(2)
    await world.rounds(2)
    assert world.state(uid) is State.STARTING


async def test_a_clock_set_back_does_not_hold_up_the_next_attempt(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    await driver.report(driver.record("INFRASTRUCTURE_ERROR", reason="WORKER_LOST"))
    driver.exit()
    world.clock.advance(-HOUR_S)
    world.restart()
    await world.rounds(2)
    assert (world.state(uid), len(world.job(uid).attempts)) == (State.STARTING, 2)


def test_the_time_that_a_machine_sleeps_counts() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= _since_boot() <= time.clock_gettime(time.CLOCK_BOOTTIME)


async def test_what_shall_be_at_a_moment_that_people_name_goes_by_the_wall(world: World) -> None:
    """The wall's clock was an hour slow, and is set right: a hold ends by it, and not ten hours later."""
    wall_s = world.clock.now_s
    world.store.database._wall = lambda: wall_s
    until = datetime.fromtimestamp(wall_s + 2 * HOUR_S, UTC)
    uid = world.create(schedule={"hold_until": until.isoformat()})
    await world.rounds(2)
    assert world.state(uid) is State.QUEUED
    wall_s += 2 * HOUR_S + 1
    world.clock.advance(60)
    await world.rounds(2)
    assert world.state(uid) is State.STARTING
