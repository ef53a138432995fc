"""Where a job stands, from the job itself and from the last decision, and how it goes over the wire."""

from __future__ import annotations

from fakes import World

from cluster import wishes
from cluster.standings import WORDS, Standing, moment, standing_of
from cluster.wire import job_to_proto


def test_a_job_that_nobody_looked_at_has_no_place_yet(world: World) -> None:
    uid = world.create()
    assert world.standing(uid) == (0, "", "the scheduler has not looked at it yet")
    world.clock.advance(1)
    world.store.save_standings({"other-aaaaaaaa": Standing(1, "QUOTA", WORDS["QUOTA"])})
    assert world.standing(uid) == (0, "BEHIND_OTHERS", "so many wait before it that it has no number yet")


def test_what_the_job_itself_waits_for_comes_first(world: World) -> None:
    first = world.create()
    job = world.job(world.create(schedule={"depends_on": [first], "hold_until": "2100-01-01T00:00:00Z"}))
    known, now_us = {job.uid: Standing(1, "RESOURCES", "")}, world.store.now_us()
    assert standing_of(job, now_us, known, now_us) == (0, "HELD", "it is held until 2100-01-01 00:00:00 UTC")
    later_us = (job.hold_until_us or 0) + 1
    assert standing_of(job, now_us, known, later_us) == (
        0,
        "DEPENDENCY",
        "it waits for 1 of the jobs that it depends on",
    )


def test_only_jobs_that_wait_stand_anywhere(world: World) -> None:
    uid = world.create()
    world.wish(uid, wishes.pause, "not now")
    assert world.store.standings_of([world.job(uid)]) == {}
    assert not job_to_proto(world.job(uid)).HasField("queue")


def test_it_reaches_the_message(world: World) -> None:
    job = world.job(world.create())
    queue = job_to_proto(job, Standing(3, "QUOTA", WORDS["QUOTA"])).queue
    assert (queue.position, queue.reason, queue.message) == (3, "QUOTA", "its project holds as much as it may")


def test_times_are_told_to_the_second() -> None:
    assert moment(1_800_000_000_900_000) == "2027-01-15 08:00:00 UTC"
